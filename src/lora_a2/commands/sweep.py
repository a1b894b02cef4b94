"""`lora-a2 sweep`"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_a2.commands.common import examples, json_option, print_json, quiet_option, resume_option
from lora_a2.commands.options import GroupedCommand, field_options
from lora_a2.config.run import RunConfig
from lora_a2.settings.errors import kebab
from lora_a2.system.invocation import program

if TYPE_CHECKING:
    from lora_a2.studies.batch import Batch
    from lora_a2.studies.sweep import Sweep

_FIELDS = [name for name in RunConfig.model_fields if name not in ("method", "output_dir")]


@click.command(
    "sweep",
    cls=GroupedCommand,
    epilog=examples(
        "lora-a2 sweep experiments/table-1.toml --profile small --data-root data",
        "lora-a2 sweep experiments/clustering.toml --profile small --processes 2 --num-server-rounds 3",
        "lora-a2 sweep --resume runs/table-1-small",
    ),
)
@click.argument(
    "experiment", required=False, metavar="[FILE]", type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option("--profile", default="published", show_default=True, metavar="NAME", help="A profile of the file.")
@click.option(
    "--data-root",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="FOLDER",
    help='Take the file\'s data sets from here if they are there: data = "banking77" is FOLDER/banking77.',
)
@click.option("--processes", type=click.IntRange(1), default=1, show_default=True, help="Runs at a time.")
@click.option("--devices", metavar="NAME,NAME,...", help="Devices on which the processes run, in turn.")
@click.option("--retry-failed", is_flag=True, help="Try runs again that failed before.")
@click.option("--dry-run", is_flag=True, help="List the runs; check all options; run nothing, write nothing.")
@click.option(
    "--output-dir",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="The sweep's directory.  [default: runs/FILE-PROFILE; the same command goes on there]",
)
@resume_option("sweep; file, profile and the options of its runs are its own")
@json_option
@quiet_option
@field_options(_FIELDS)
def command(
    experiment: Path | None,
    profile: str,
    data_root: Path | None,
    processes: int,
    devices: str | None,
    retry_failed: bool,
    dry_run: bool,
    output_dir: Path | None,
    resumed: Path | None,
    as_json: bool,
    quiet: bool,
    **flags: Any,
) -> None:
    """Run an experiment file: every combination of its grid, learning rates tuned first, one table at the end.

    Options of runs given here win over the file, and take the place of a grid. A run that fails is recorded, and the others go
    on. Whatever was interrupted goes on with the same command.
    """
    ctx = click.get_current_context()
    if (resumed is None) == (experiment is None):
        raise click.UsageError("Name an experiment file, or a sweep to --resume.", ctx)

    from lora_a2.studies.sweep import Request, Sweep, default_path
    from lora_a2.system.locks import Lock

    if resumed is not None:
        sweep = Sweep.open(resumed)
    else:
        assert experiment is not None
        fixed = {kebab(key): value for key, value in flags.items() if value is not None}
        root = None if data_root is None else str(data_root.resolve())
        request = Request(experiment.stem, _text(experiment), profile, fixed, root, str(Path.cwd()))
        path = output_dir or default_path(experiment.stem, profile)
        sweep = Sweep(path, request) if dry_run else Sweep.begin(path, request)
    if dry_run:
        _print_plan(sweep, as_json=as_json)
        return
    how = _How(processes, [d.strip() for d in (devices or "").split(",") if d.strip()], retry_failed, quiet)
    try:
        with Lock(sweep.path):
            failed = _run(sweep, how, as_json=as_json)
    except KeyboardInterrupt:
        where = shlex.quote(str(sweep.path))
        raise click.Abort(f"Interrupted; continue with: {program()} sweep --resume {where}") from None
    ctx.exit(1 if failed else 0)


def finish(path: Path, *, quiet: bool, as_json: bool) -> None:
    """Continues a sweep, one run after another."""
    arguments = ["--resume", str(path), *(["--quiet"] if quiet else []), *(["--json"] if as_json else [])]
    command.main(arguments, standalone_mode=False)


class _How:
    """How a batch is run."""

    def __init__(self, processes: int, devices: Sequence[str], retry_failed: bool, quiet: bool) -> None:
        self._processes, self._devices, self._quiet = processes, devices, quiet
        self._retry_failed = retry_failed

    def say(self, text: str) -> None:
        """Progress, to standard error."""
        if not self._quiet:
            click.echo(text, err=True)

    def run(self, batch: Batch) -> None:
        """What is not finished yet."""
        from lora_a2.display.live import choose_display
        from lora_a2.studies.execution import run_apart, run_here

        if self._retry_failed:
            for run in batch.runs:
                run.forgive()
        if self._processes == 1 and not self._devices:
            run_here(batch, lambda: choose_display(self._quiet), self.say)
        else:
            run_apart(batch, self._processes, self._devices, self.say)


def _text(path: Path) -> str:
    from lora_a2.errors import ConfigError

    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"Cannot read the experiment {str(path)!r}: it is not UTF-8 text.") from None


def _run(sweep: Sweep, how: _How, *, as_json: bool) -> int:
    """Tunes, runs, prints the table; returns the number of runs that failed."""
    chosen: list[dict[str, Any]] = []
    if (tuning := sweep.tuning_batch()) is not None:
        how.say(f"Tuning the learning rate: {len(tuning.runs)} runs")
        how.run(tuning)
        chosen = sweep.choose_rates(tuning)
        for entry in chosen:
            edge = ", at the edge of the candidates" if entry["at_edge"] else ""
            group = " ".join(str(v) for k, v in entry.items() if k not in ("runs", "candidates", "chosen", "at_edge"))
            how.say(f"{group}: learning rate {entry['chosen']:g}{edge}")
    batch = sweep.batch(chosen)
    how.say(f"{sweep.experiment.title or sweep.request.name}: {len(batch.runs)} runs")
    how.run(batch)
    table, shown = sweep.tables(batch)
    failures = {run.name: failure["message"] for run in batch.runs if (failure := run.failure()) is not None}
    if as_json:
        import json

        results = json.loads(table.to_json(orient="records"))
        print_json({"output_dir": str(sweep.path), "results": results, "learning_rates": chosen, "failures": failures})
    else:
        _print(sweep.path, shown, failures)
    return len(failures)


def _print(path: Path, tables: Sequence[Sequence[Sequence[str]]], failures: Mapping[str, str]) -> None:
    from lora_a2.display.console import print_table, stdout_console
    from lora_a2.display.tables import print_columns

    console = stdout_console()
    for header, *rows in tables:
        print_columns(header, rows, console, left=range(len(header)))
    print_table([(f"Failed: {name}", message) for name, message in failures.items()], console)
    print_table([("Directory", str(path)), ("Tables", f"{path}/results.md, .csv, .parquet")], console)


def _print_plan(sweep: Sweep, *, as_json: bool) -> None:
    names = {"tuning": [trial.point.name for trial in sweep.trials], "runs": [point.name for point in sweep.points]}
    if as_json:
        print_json({"title": sweep.experiment.title, **names})
        return
    for kind, listed in names.items():
        click.echo(f"{kind}: {len(listed)}")
        for name in listed:
            click.echo(f"  {name}")
