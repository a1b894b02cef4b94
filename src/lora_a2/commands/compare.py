"""`lora-a2 compare`"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from lora_a2.commands.common import config_option, examples, json_option, print_json, quiet_option, resume_option
from lora_a2.commands.options import GroupedCommand, field_options
from lora_a2.config.run import RunConfig
from lora_a2.system.invocation import program

if TYPE_CHECKING:
    from lora_a2.runs.summary import RunSummary
    from lora_a2.studies.batch import PlannedRun
    from lora_a2.studies.compare import Comparison

Number = TypeVar("Number", int, float)
_FIELDS = [name for name in RunConfig.model_fields if name != "method"]


@click.command(
    "compare",
    cls=GroupedCommand,
    epilog=examples(
        "lora-a2 compare --methods lora-a2,fl-lora,flexlora",
        "lora-a2 compare --methods lora-a2,ffa-lora --learning-rates 5e-4,2e-3,5e-3 --data banking77 --json",
        "lora-a2 compare --methods lora-a2,fl-lora --learning-rate-multiples 0.2,0.5,1 --validation-fraction 0.2",
        "lora-a2 compare --resume runs/compare-20260101-120000",
    ),
)
@click.option("--methods", metavar="NAME,NAME,...", help="The algorithms to compare, as of --method of run.")
@click.option(
    "--learning-rates",
    metavar="X,X,...",
    help="Run every method at each of these; the table shows the best of each, by the test set, or by --validation-fraction.",
)
@click.option(
    "--learning-rate-multiples",
    metavar="X,X,...",
    help="Run every method at each of these times the rate it would have; instead of --learning-rates, and chosen alike.",
)
@click.option("--at-rounds", metavar="N,N,...", help="Show the score after each of these rounds too.")
@resume_option("comparison; all other options are its own")
@config_option
@json_option
@quiet_option
@field_options(_FIELDS)
def command(
    methods: str | None,
    learning_rates: str | None,
    learning_rate_multiples: str | None,
    at_rounds: str | None,
    resumed: Path | None,
    config_file: Path | None,
    as_json: bool,
    quiet: bool,
    **flags: Any,
) -> None:
    """Run several methods on the same split, seed and cohort order, and print one table.

    Of several learning rates each method is shown at its best. It is the best by the same test examples that it is shown on, unless
    --validation-fraction holds out others for all of the table.

    Any Ctrl-C or crash can be continued with "lora-a2 compare --resume" or "lora-a2 resume".
    """
    numbers = _Numbers.of(learning_rates, learning_rate_multiples, at_rounds)
    if resumed is not None:
        finish(resumed, quiet=quiet, as_json=as_json, at_rounds=numbers.at_rounds)
        return
    if methods is None:
        raise click.UsageError("Name the methods: --methods lora-a2,fl-lora.", click.get_current_context())

    from lora_a2.config.run import load_config
    from lora_a2.studies.compare import plan_comparison

    comparison = plan_comparison(
        [name.strip() for name in methods.split(",") if name.strip()],
        numbers.rates,
        load_config(config_file) if config_file else {},
        flags,
        multiples=numbers.multiples,
        at_rounds=numbers.at_rounds,
    )
    _run(comparison, quiet=quiet, as_json=as_json, at_rounds=numbers.at_rounds)


def finish(path: Path, *, quiet: bool, as_json: bool, at_rounds: Sequence[int] = ()) -> None:
    """Continues a comparison."""
    from lora_a2.studies.compare import open_comparison

    comparison = open_comparison(path)
    comparison.check_evaluated(at_rounds)
    _run(comparison, quiet=quiet, as_json=as_json, at_rounds=at_rounds)


class _Numbers(NamedTuple):
    """The options that are lists of numbers."""

    rates: list[float]
    multiples: list[float]
    at_rounds: list[int]

    @classmethod
    def of(cls, rates: str | None, multiples: str | None, at_rounds: str | None) -> _Numbers:
        if rates is not None and multiples is not None:
            raise click.UsageError("Give --learning-rates or --learning-rate-multiples, not both.")
        return cls(
            _list("--learning-rates", rates, float, "5e-4,2e-3"),
            _list("--learning-rate-multiples", multiples, float, "0.2,0.5,1"),
            _list("--at-rounds", at_rounds, int, "4,8,12"),
        )


def _list(option: str, text: str | None, kind: Callable[[str], Number], example: str) -> list[Number]:
    """The different numbers of a list, in its order."""
    try:
        return list(dict.fromkeys(kind(part) for part in (text or "").split(",") if part.strip()))
    except ValueError:
        raise click.UsageError(f"{option}: {text!r} is not a list of numbers such as {example}.") from None


def _run(comparison: Comparison, *, quiet: bool, as_json: bool, at_rounds: Sequence[int]) -> None:
    from lora_a2.display.live import choose_display
    from lora_a2.system.locks import Lock

    results = []
    try:
        with Lock(comparison.path):
            for run in comparison.runs:
                with choose_display(quiet) as display:
                    results.append((run, run.run(display)))
    except KeyboardInterrupt:
        where = shlex.quote(str(comparison.path))
        raise click.Abort(f"Interrupted; continue with: {program()} compare --resume {where}") from None
    if as_json:
        from lora_a2.studies.compare import measured_on

        runs = [_entry(*each, at_rounds) for each in results]
        print_json(
            {"output_dir": str(comparison.path), "evaluated_on": measured_on(comparison.runs), "runs": runs},
        )
    else:
        _print(comparison, results, at_rounds)


def _entry(run: PlannedRun, summary: RunSummary, at_rounds: Sequence[int]) -> dict[str, Any]:
    """A run in the JSON output."""
    found = {"name": run.name, "learning_rate": _rate(run), **summary.to_json()}
    return found | ({"at_rounds": {str(n): run.score_at(n) for n in at_rounds}} if at_rounds else {})


def _rate(run: PlannedRun) -> float | None:
    """The rate that was asked for; None: the default."""
    return run.config.learning_rate


def _print(comparison: Comparison, results: Sequence[tuple[PlannedRun, RunSummary]], at_rounds: Sequence[int]) -> None:
    from lora_a2.display.console import print_line, print_table, stdout_console
    from lora_a2.display.progress import human_bytes, human_time
    from lora_a2.display.tables import print_columns
    from lora_a2.studies.compare import best_of_each, how_chosen, measured_on
    from lora_a2.tasks.registry import get_task

    own = any(summary.personal is not None for _, summary in results)
    task = get_task(results[0][1].task)
    rounds = [f"Round {number}" for number in at_rounds]
    of = "" if measured_on(comparison.runs) == "test" else "validation "
    score = [f"{of}{task.shown}".capitalize(), *(["Personal"] if own else [])]
    rows = []
    for run, summary in best_of_each(results):
        rate, personal = _rate(run), summary.personal
        rows.append(
            [
                run.config.method,
                "default" if rate is None else f"{rate:g}",
                *(task.show(run.score_at(number)) for number in at_rounds),
                task.show(summary.metrics[task.primary] or 0.0),
                *(["" if personal is None else task.show(summary.score)] if own else []),
                human_bytes(summary.uploaded_bytes),
                human_bytes(summary.downloaded_bytes),
                human_time(summary.seconds),
            ]
        )
    console = stdout_console()
    print_columns(["Method", "Rate", *rounds, *score, "Uploaded", "Downloaded", "Time"], rows, console)
    if (note := how_chosen(comparison.runs, task.shown)) is not None:
        print_line(console, note)
    print_table([("Directory", str(comparison.path))], console)
