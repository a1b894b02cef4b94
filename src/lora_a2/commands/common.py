"""What the commands share: options, help with examples, JSON output, and the frame around a training run."""

from __future__ import annotations

import json
import shlex
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lora_a2.errors import LoraA2Warning
from lora_a2.system.invocation import program
from lora_a2.system.text import visible

if TYPE_CHECKING:
    from lora_a2.federation.observer import Observer
    from lora_a2.runs.summary import RunSummary
    from lora_a2.system.checks import Finding

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

run_dir_argument = click.argument(
    "run_dir", metavar="RUN_DIR", type=click.Path(exists=True, file_okay=False, path_type=Path)
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
quiet_option = click.option("--quiet", is_flag=True, help="Show no progress.")
trust_option = click.option(
    "--trust-remote-code",
    is_flag=True,
    help="Run Python that lies in the model's folder or repository; a run does not remember it.",
)
config_option = click.option(
    "--config",
    "config_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="TOML file with the options below as keys; options given here win.",
)


def resume_option(what: str) -> Callable[[Decorated], Decorated]:
    """--resume, which arrives as `resumed`."""
    kind = click.Path(exists=True, file_okay=False, path_type=Path)
    return click.option("--resume", "resumed", type=kind, metavar="FOLDER", help=f"Continue a {what}.")


def examples(*lines: str) -> str:
    """An epilog that shows command lines as they are."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object in one line on standard output."""
    click.echo(json.dumps(value, ensure_ascii=False))


def say_standing(run_dir: Path) -> None:
    """A line on standard error if a run is not finished, and its model is that of its last finished round."""
    from lora_a2.runs.directory import RunDirectory
    from lora_a2.runs.unfinished import standing

    if (run_dir / "config.toml").is_file() and (line := standing(RunDirectory.open(run_dir))) is not None:
        click.echo(visible(line), err=True)


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Our warnings as a line each on standard error, without the place in the source."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", LoraA2Warning)
        warnings.showwarning = lambda message, *args, **options: click.echo(visible(str(message)), err=True)
        yield


def report_checks(findings: Iterable[Finding], *, as_json: bool) -> int:
    """Prints what checks find, a line each as it comes; the exit status: 1 if one fails.

    JSON is one object with all findings.
    """
    seen = []
    for finding in findings:
        seen.append(finding)
        if not as_json:
            line = f"{finding.state:<11}  {finding.what:<15}  {' '.join(finding.said.split())}"
            click.echo(visible(line))
    failed = [finding.what for finding in seen if finding.state == "failed"]
    if as_json:
        print_json({"ok": not failed, "checks": [asdict(finding) for finding in seen]})
    elif failed:
        click.echo(f"{len(failed)} of {len(seen)} checks failed: {', '.join(failed)}.")
    return 1 if failed else 0


def train(launch: Callable[[Observer], RunSummary], *, quiet: bool, as_json: bool) -> None:
    """Runs `launch` under a display and prints its summary.

    Raises:
        click.Abort: Ctrl-C; its text says how to continue.
    """
    from lora_a2.display.live import choose_display, print_summary

    display = choose_display(quiet)
    try:
        with display:
            summary = launch(display)
    except KeyboardInterrupt:
        raise click.Abort(interrupted(display.output_dir)) from None
    if as_json:
        print_json(summary.to_json())
    else:
        print_summary(summary)


def interrupted(output_dir: str | None) -> str:
    """What to say after Ctrl-C."""
    if output_dir is None:
        return "Interrupted before the first round; nothing to continue."
    return f"Interrupted; continue with: {program()} resume {shlex.quote(output_dir)}"
