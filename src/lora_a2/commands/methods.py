"""`lora-a2 methods`"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lora_a2.commands.common import examples, json_option, print_json

if TYPE_CHECKING:
    from lora_a2.methods.base import Method


@click.command("methods", epilog=examples("lora-a2 methods", "lora-a2 methods --json"))
@json_option
def command(as_json: bool) -> None:
    """List the algorithms that --method takes.

    Exact: aggregation gives the weighted mean of the clients' models. Personal: each client ends with its own model.
    """
    from lora_a2.methods import METHODS

    if as_json:
        print_json({m.name: _row(m) for m in METHODS.values()})
        return

    from rich.box import SIMPLE
    from rich.table import Column, Table

    from lora_a2.display.console import print_table, stdout_console

    headers = ("Uploads", "Downloads", "Exact", "Personal", "Mixed ranks")
    table = Table(Column("Method", no_wrap=True), *headers, box=SIMPLE)
    references = []
    for method in METHODS.values():
        flags = ("yes" if flag else "no" for flag in (method.exact, method.private, method.mixed_ranks))
        table.add_row(method.name, method.uploads, method.downloads, *flags)
        references.append((method.name, method.reference))
    console = stdout_console()
    console.print(table)
    print_table(references, console)


def _row(method: Method) -> dict[str, object]:
    return {
        "odd_rounds": sorted(method.schedule(1)),
        "even_rounds": sorted(method.schedule(2)),
        "uploads": method.uploads,
        "downloads": method.downloads,
        "exact": method.exact,
        "personal": bool(method.private),
        "mixed_ranks": method.mixed_ranks,
        "reference": method.reference,
    }
