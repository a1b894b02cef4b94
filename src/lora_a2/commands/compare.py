"""`lora-a2 compare`"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_a2.commands.common import config_option, examples, json_option, print_json, quiet_option
from lora_a2.commands.options import GroupedCommand, field_options
from lora_a2.config import RunConfig

if TYPE_CHECKING:
    from lora_a2.compare import Comparison, PlannedRun
    from lora_a2.jobs import RunSummary

_FIELDS = [name for name in RunConfig.model_fields if name != "method"]


@click.command(
    "compare",
    cls=GroupedCommand,
    epilog=examples(
        "lora-a2 compare --methods lora-a2,fl-lora,flexlora",
        "lora-a2 compare --methods lora-a2,ffa-lora --learning-rates 5e-4,2e-3,5e-3 --data banking77 --json",
        "lora-a2 compare --resume runs/compare-20260101-120000",
    ),
)
@click.option("--methods", metavar="NAME,NAME,...", help="The algorithms to compare, as of --method of run.")
@click.option(
    "--learning-rates", metavar="X,X,...", help="Run every method at each of these; the table shows the best of each."
)
@click.option(
    "--resume",
    "resumed",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Continue a comparison; all other options are its own.",
)
@config_option
@json_option
@quiet_option
@field_options(_FIELDS)
def command(
    methods: str | None,
    learning_rates: str | None,
    resumed: Path | None,
    config_file: Path | None,
    as_json: bool,
    quiet: bool,
    **flags: Any,
) -> None:
    """Run several methods on the same split, seed and cohort order, and print one table.

    Any Ctrl-C or crash can be continued with "lora-a2 compare --resume" or "lora-a2 resume".
    """
    if resumed is not None:
        finish(resumed, quiet=quiet, as_json=as_json)
        return
    if methods is None:
        raise click.UsageError("Name the methods: --methods lora-a2,fl-lora.", click.get_current_context())

    from lora_a2.compare import plan_comparison
    from lora_a2.config import load_config

    names = [name.strip() for name in methods.split(",") if name.strip()]
    values = load_config(config_file) if config_file else {}
    _run(plan_comparison(names, _rates(learning_rates), values, flags), quiet=quiet, as_json=as_json)


def finish(path: Path, *, quiet: bool, as_json: bool) -> None:
    """Continues a comparison."""
    from lora_a2.compare import open_comparison

    _run(open_comparison(path), quiet=quiet, as_json=as_json)


def _rates(text: str | None) -> list[float]:
    try:
        return [float(part) for part in (text or "").split(",") if part.strip()]
    except ValueError:
        raise click.UsageError(f"--learning-rates: {text!r} is not a list of numbers such as 5e-4,2e-3.") from None


def _run(comparison: Comparison, *, quiet: bool, as_json: bool) -> None:
    from lora_a2.display import choose_display

    results = []
    for run in comparison.runs:
        display = choose_display(quiet)
        try:
            with display:
                results.append((run, run.run(display)))
        except KeyboardInterrupt:
            where = shlex.quote(str(comparison.path))
            raise click.Abort(f"Interrupted; continue with: lora-a2 compare --resume {where}") from None
    if as_json:
        runs = [{"name": run.name, "learning_rate": _rate(run), **summary.to_json()} for run, summary in results]
        print_json({"output_dir": str(comparison.path), "runs": runs})
    else:
        _print(comparison, results)


def _rate(run: PlannedRun) -> float | None:
    """The rate that was asked for; None: the default."""
    return run.config.learning_rate


def _print(comparison: Comparison, results: Sequence[tuple[PlannedRun, RunSummary]]) -> None:
    from rich.box import SIMPLE
    from rich.table import Column, Table

    from lora_a2.compare import best_of_each
    from lora_a2.display import print_table, stdout_console
    from lora_a2.progress import human_bytes, human_time, percent

    own = any(summary.personal_accuracy is not None for _, summary in results)
    table = Table(Column("Method", no_wrap=True), box=SIMPLE)
    for header in ("Rate", "Accuracy", *(["Personal"] if own else []), "Uploaded", "Downloaded", "Time"):
        table.add_column(header, justify="right", no_wrap=True)
    for run, summary in best_of_each(results):
        rate, personal = _rate(run), summary.personal_accuracy
        table.add_row(
            run.config.method,
            "default" if rate is None else f"{rate:g}",
            percent(summary.accuracy),
            *(["" if personal is None else percent(personal)] if own else []),
            human_bytes(summary.uploaded_bytes),
            human_bytes(summary.downloaded_bytes),
            human_time(summary.seconds),
        )
    console = stdout_console()
    console.print(table)
    print_table([("Directory", str(comparison.path))], console)
