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

    from lora_a2.display.console import print_table, stdout_console
    from lora_a2.display.tables import print_columns

    console = stdout_console()
    header = ("Method", "Uploads", "Downloads", "Exact", "Personal", "Mixed ranks")
    print_columns(header, [_cells(method) for method in METHODS.values()], console, left=range(len(header)))
    print_table([(method.name, method.reference) for method in METHODS.values()], console)


def _cells(method: Method) -> list[str]:
    flags = ("yes" if flag else "no" for flag in (method.exact, method.private, method.mixed_ranks))
    return [method.name, method.uploads, method.downloads, *flags]


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
