"""`lora-a2 analyze`"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_a2.commands.common import examples, json_option, print_json

if TYPE_CHECKING:
    from lora_a2.analysis.record import RunRecord


@click.command(
    "analyze",
    epilog=examples(
        "lora-a2 analyze runs/helpdesk",
        "lora-a2 analyze runs/helpdesk --json > statistics.json",
        "lora-a2 analyze runs/clustering-small",
    ),
)
@click.argument(
    "folders",
    metavar="RUN_DIR...",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
)
@json_option
def command(folders: tuple[Path, ...], as_json: bool) -> None:
    """Tell what a run's record says of the algorithm; of several runs, a sweep or a comparison, in one table.

    Which layers were selected, how alike clients' updates and selected ranks are and whether those that share classes are more
    alike than chance, what averaging lost (discordance), how fast it converged.
    """
    from lora_a2.analysis.record import load_run, runs_in
    from lora_a2.analysis.summary import analyze

    runs = [load_run(path) for folder in folders for path in runs_in(folder)]
    found = [analyze(run) for run in runs]
    if len(found) > 1:
        _print_several(found, as_json=as_json)
    elif as_json:
        print_json(found[0])
    else:
        _print_one(runs[0], found[0])


def _print_one(run: RunRecord, found: Mapping[str, Any]) -> None:
    from lora_a2.analysis.ranks import selected_ranks
    from lora_a2.display.console import print_table
    from lora_a2.display.tables import print_columns

    print_table(_rows(found))
    click.echo("\nRank slices uploaded of each module, mean over clients and rounds:")
    table = selected_ranks(run)
    cells = [["" if value != value else f"{value:.2f}" for value in row] for row in table.to_numpy()]
    print_columns(
        ["Layer", *map(str, table.columns)], [[str(n), *row] for n, row in zip(table.index, cells, strict=True)]
    )


def _print_several(found: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    from lora_a2.display.tables import print_columns
    from lora_a2.tasks.registry import get_task

    if as_json:
        print_json({"runs": list(found)})
        return
    tasks = list(map(get_task, dict.fromkeys(one["task"] for one in found)))
    tested = any(any(_test(one[kind])) for one in found for kind in ("updates", "masks"))
    tests = ("Updates r", "p", "Ranks r", "p") if tested else ()
    rows = [
        [
            Path(one["run"]).name,
            *("" if one.get(task.primary) is None else task.show(one[task.primary]) for task in tasks),
            _final(one["gradient_similarity"]),
            _final(one["relative_discordance"]),
            *(text for kind in ("updates", "masks") if tested for text in _test(one[kind])),
        ]
        for one in found
    ]
    print_columns(
        ["Run", *(task.headline for task in tasks), "Gradient similarity", "Discordance / change", *tests], rows
    )
    meaning = "r, p: of the test whether clients that share classes are more alike than chance. " if tested else ""
    click.echo(f"{meaning}Values of the last round.")


def _final(by_round: Mapping[str, float] | None) -> str:
    return "" if by_round is None else f"{list(by_round.values())[-1]:.3g}"


def _test(found: Mapping[str, Any] | None) -> tuple[str, str]:
    test = found and found["test"]
    return (f"{test['correlation']:.2f}", f"{test['p_value']:.2g}") if test else ("", "")


def _rows(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    from lora_a2.tasks.registry import get_task

    task = get_task(found["task"])

    def shown(value: float | None) -> str:
        return "not evaluated" if value is None else task.show(value)

    reached = ", ".join(f"{float(goal):.0%}: {n}" for goal, n in found["rounds_to"].items() if n is not None)
    return [
        ("Method", found["method"]),
        ("Server rounds", str(found["server_rounds"])),
        (task.headline, shown(found[task.primary])),
        ("Worst tenth of clients", shown(found["clients"]["worst_tenth"])),
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
