"""`lora-a2 methods`"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lora_a2.commands.common import examples, json_option, print_json

if TYPE_CHECKING:
    from lora_a2.method import Method


@click.command("methods", epilog=examples("lora-a2 methods", "lora-a2 methods --json"))
@json_option
def command(as_json: bool) -> None:
    """List the algorithms that --method takes."""
    from lora_a2.methods import METHODS

    if as_json:
        print_json({m.name: _row(m) for m in METHODS.values()})
        return

    from rich.table import Table

    from lora_a2.display import stdout_console

    table = Table("Method", "Trained factors", "Exact", "Mixed ranks", show_lines=True)
    table.add_column("Reference", overflow="fold")
    for method in METHODS.values():
        row = _row(method)
        flags = ("yes" if row[key] else "no" for key in ("exact", "mixed_ranks"))
        table.add_row(method.name, _trained(method), *flags, method.reference)
    stdout_console().print(table)


def _row(method: Method) -> dict[str, object]:
    return {
        "odd_rounds": sorted(method.trainable(1)),
        "even_rounds": sorted(method.trainable(2)),
        "exact": method.exact,
        "mixed_ranks": method.mixed_ranks,
        "reference": method.reference,
    }


def _trained(method: Method) -> str:
    odd, even = (" and ".join(sorted(method.trainable(server_round))) for server_round in (1, 2))
    return odd if odd == even else f"{odd}, then {even}"
