"""`lora-a2 analyze`"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_a2.commands.common import examples, json_option, print_json, run_dir_argument

if TYPE_CHECKING:
    import pandas as pd


@click.command(
    "analyze",
    epilog=examples("lora-a2 analyze runs/helpdesk", "lora-a2 analyze runs/helpdesk --json > statistics.json"),
)
@run_dir_argument
@json_option
def command(run_dir: Path, as_json: bool) -> None:
    """Tell what a run's record says of the algorithm.

    Which layers were selected, how alike clients' updates and selected ranks are and whether those that share classes are more
    alike than chance, what averaging lost (discordance), how fast it converged.
    """
    from lora_a2.analysis.ranks import selected_ranks
    from lora_a2.analysis.record import load_run
    from lora_a2.analysis.summary import analyze

    run = load_run(run_dir)
    found = analyze(run)
    if as_json:
        print_json(found)
        return

    from lora_a2.display import print_table

    print_table(_rows(found))
    click.echo("\nRank slices uploaded of each module, mean over clients and rounds:")
    _print(selected_ranks(run))


def _rows(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    from lora_a2.progress import percent

    def share(value: float | None) -> str:
        return "not evaluated" if value is None else percent(value)

    reached = ", ".join(f"{float(goal):.0%}: {n}" for goal, n in found["rounds_to"].items() if n is not None)
    return [
        ("Method", found["method"]),
        ("Server rounds", str(found["server_rounds"])),
        ("Accuracy", share(found["accuracy"])),
        ("Worst tenth of clients", share(found["clients"]["worst_tenth"])),
        ("Rounds to a share of the best", reached or "not evaluated"),
        ("Gradient similarity", _span(found["gradient_similarity"])),
        ("Discordance / change", _span(found["relative_discordance"])),
        ("Updates of two clients", _sharing(found["updates"])),
        ("Selected ranks of two clients", _sharing(found["masks"])),
    ]


def _span(by_round: Mapping[str, float] | None) -> str:
    """First and last round's value."""
    if by_round is None:
        return "not recorded"
    (first, start), (last, end) = next(iter(by_round.items())), list(by_round.items())[-1]
    return f"{start:.3g} in round {first}" + (f", {end:.3g} in round {last}" if first != last else "")


def _sharing(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "not recorded"
    mean = "no pair in one round" if found["mean"] is None else f"{found['mean']:.3f} alike on average"
    test = found["test"]
    if test is None:
        return mean
    parts = [(name, test[key]) for name, key in (("share classes", "sharing"), ("share none", "apart"))]
    means = ", ".join(f"{value:.3f} where they {name}" for name, value in parts if value is not None)
    return f"{means}; with the overlap of labels r = {test['correlation']:.2f}, p = {test['p_value']:.2g}"


def _print(table: pd.DataFrame) -> None:
    from rich.box import SIMPLE
    from rich.table import Column, Table

    from lora_a2.display import stdout_console

    shown = Table(Column("Layer", justify="right"), box=SIMPLE)
    for name in table.columns:
        shown.add_column(str(name), justify="right")
    for layer, row in table.iterrows():
        shown.add_row(str(layer), *("" if value != value else f"{value:.2f}" for value in row))
    stdout_console().print(shown)
