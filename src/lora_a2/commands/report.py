"""`lora-a2 report`"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import click

from lora_a2.commands.common import examples
from lora_a2.system.invocation import installer


@click.command(
    "report",
    epilog=examples(
        "lora-a2 report runs/helpdesk-lora-a2-20260101-120000",
        "lora-a2 report runs/compare-20260101-120000 --output compare.html",
        "lora-a2 report runs/one runs/two",
        "lora-a2 report runs/tickets --examples 20 --output mistakes.html",
    ),
)
@click.argument(
    "paths",
    metavar="RUN_OR_SWEEP...",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("report.html"),
    metavar="FILE",
    show_default=True,
    help="The page; one that is there is replaced.",
)
@click.option(
    "--examples",
    "number",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    show_default=True,
    help="Test examples to show: prompts that a model which writes answers before and after fine-tuning; of a classifier, "
    "beside the classes that it confuses, those that it is wrong about with the highest probability. The page then holds "
    "texts of the data.",
)
def command(paths: tuple[Path, ...], output: Path, number: int) -> None:
    """Write one HTML page with pictures and tables of runs, which works offline.

    A folder may be a run, finished or not, or hold several: a comparison, a sweep. Several runs are compared; of a
    sweep the page shows how learning rates were chosen, and what failed, too.
    """
    from lora_a2.errors import ConfigError

    if any(find_spec(name) is None for name in ("altair", "jinja2", "vl_convert")):
        raise ConfigError(f"report: what draws the pictures is not installed; run: {installer('report')}")

    from lora_a2.report.answers import answer_sections
    from lora_a2.report.batches import batch_sections
    from lora_a2.report.inputs import find_runs
    from lora_a2.report.render import render
    from lora_a2.system.files import write_atomic

    runs, not_begun = find_runs(paths)
    more = [*batch_sections(paths), *(answer_sections(runs, number) if number else ())]
    write_atomic(output, render(runs, not_begun, more).encode())
    click.echo(f"{output}: open it in a browser")
