"""`lora-a2 predict`"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_a2.commands.common import (
    examples,
    print_json,
    run_dir_argument,
    say_standing,
    trust_option,
    warnings_as_lines,
)
from lora_a2.commands.given import given_or_lines
from lora_a2.commands.options import field_options
from lora_a2.data.file_options import FILE_OPTIONS, FileOptions, take_file_options
from lora_a2.settings.errors import kebab
from lora_a2.system.invocation import program
from lora_a2.system.text import visible

if TYPE_CHECKING:
    import numpy as np

    from lora_a2.data.tables import AnyTable
    from lora_a2.runs.predict import Predictor

_BATCH = 64


@click.command(
    "predict",
    epilog=examples(
        'lora-a2 predict runs/helpdesk "my parcel never came"',
        'lora-a2 predict runs/helpdesk --top 1 "where is my refund" "the box is damaged"',
        "lora-a2 predict runs/helpdesk --data new.csv --text-column body --output labelled.csv",
        "lora-a2 predict runs/helpdesk --json < texts.txt > labels.jsonl",
    ),
)
@run_dir_argument
@click.argument("texts", metavar="[TEXT]...", nargs=-1)
@click.option(
    "--data",
    metavar="FILE",
    help="Label the rows of this table: a file (csv, tsv, jsonl, parquet; plain or gz), or else as --data of run.",
)
@click.option(
    "--text-column", metavar="TEXT", help="Column of the texts; the run's own if the data have it, or a usual name."
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the table there, with the columns label and probability behind its own (predicted_label and "
    "predicted_probability if it has these): csv, tsv, jsonl or parquet, by the name. A file that is there is replaced.",
)
@field_options(FILE_OPTIONS)
@click.option("--top", type=click.IntRange(min=1), help="Number of labels a text.  [default: 3]")
@trust_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a text, one a line; of --output one in all.")
def command(
    run_dir: Path,
    texts: tuple[str, ...],
    data: str | None,
    text_column: str | None,
    output: Path | None,
    top: int | None,
    trust_remote_code: bool,
    as_json: bool,
    **file: Any,
) -> None:
    """Label texts with a run: the likeliest labels with their probabilities.

    Without TEXT and --data, every line of standard input is a text; empty lines are skipped. A run that is not finished labels
    with the model of its last finished round.
    """
    _check(texts, data, text_column, output, top)
    if data is None and (lone := next((name for name, value in file.items() if value is not None), None)):
        raise click.UsageError(f"--{kebab(lone)} is of the table of --data: give it too.", click.get_current_context())
    given = iter(()) if data is not None else given_or_lines(texts, "text")
    for text in texts:
        if os.path.isfile(text):
            _hint(run_dir, text)

    from lora_a2.runs.directory import require_some

    require_some(run_dir)

    from lora_a2.runs.predict import load_predictor

    say_standing(run_dir)
    predictor = load_predictor(run_dir, trust_remote_code=trust_remote_code)
    if data is not None:
        with warnings_as_lines():
            table, rows = _table(predictor, run_dir, data, text_column, take_file_options(file))
        if output is not None:
            _write(predictor, table, rows, output, as_json)
            return
        given = iter(rows)
    while batch := list(islice(given, _BATCH)):
        for text, row in zip(batch, predictor.predict(batch), strict=True):
            _show(text, _likeliest(predictor.label_names, row, top or 3), as_json)


def _check(
    texts: Sequence[str], data: str | None, text_column: str | None, output: Path | None, top: int | None
) -> None:
    """Refuses options that have nothing to act on, and a file that cannot be written."""
    context = click.get_current_context()
    if data is None and (text_column or output):
        raise click.UsageError(
            f"{'--text-column' if text_column else '--output'} is of the table of --data: give it too.", context
        )
    if data is not None and texts:
        raise click.UsageError("Give TEXT or --data, not both.", context)
    if output is None:
        return
    if top is not None:
        raise click.UsageError("--output holds the likeliest label alone: leave --top out.", context)

    from lora_a2.data.output import require_writable

    require_writable(output)
    if os.path.exists(output) and os.path.exists(str(data)) and os.path.samefile(output, str(data)):
        raise click.UsageError("--output is the file of --data: name another.", context)


def _hint(run_dir: Path, text: str) -> None:
    run, name = shlex.quote(str(run_dir)), shlex.quote(text)
    line = f"{text!r} is labelled as a text, and it is a file's name; for what is in the file: {program()} predict {run} --data {name}"
    click.echo(visible(line), err=True)


def _table(
    predictor: Predictor, run_dir: Path, data: str, text_column: str | None, file: FileOptions
) -> tuple[AnyTable, list[str]]:
    """The table of --data, and its texts, read as the run read its own."""
    from lora_a2.data.sources import load_texts
    from lora_a2.runs.configured import config_of
    from lora_a2.runs.directory import RunDirectory
    from lora_a2.runs.predict import is_model_folder

    usual: dict[str, Any] = {}
    if not is_model_folder(run_dir):
        config = config_of(RunDirectory.open(run_dir))
        usual = {"usual_column": config.text_column, "strip_newsgroups": config.strip_newsgroups}
    return load_texts(data, predictor.label_names, text_column=text_column, file=file, **usual)


def _write(predictor: Predictor, table: AnyTable, texts: Sequence[str], output: Path, as_json: bool) -> None:
    from lora_a2.data.output import free_names, write_table

    names = free_names(table, ("label", "probability"), ("predicted_label", "predicted_probability"))
    labels, probabilities = [], []
    for batch in _shown(range(0, len(texts), _BATCH)):
        rows = predictor.predict(texts[batch : batch + _BATCH])
        labels += [predictor.label_names[k] for k in rows.argmax(1)]
        probabilities += [round(float(p), 6) for p in rows.max(1)]
    write_table(output, table, dict(zip(names, (labels, probabilities), strict=True)))
    if as_json:
        print_json({"output": str(output), "num_examples": len(texts), "columns": list(names)})
    else:
        click.echo(visible(f"Written: {output}, {len(texts):,} rows of {table.source} with {' and '.join(names)}"))


def _shown(batches: range) -> Iterator[int]:
    """The batches, with a bar on a terminal."""
    from rich.progress import track

    from lora_a2.display.console import PlainConsole

    console = PlainConsole(stderr=True)
    yield from track(batches, "Labelling", console=console, transient=True, disable=not console.is_terminal)


def _likeliest(label_names: Sequence[str], row: np.ndarray, top: int) -> list[tuple[str, float]]:
    order = sorted(range(len(label_names)), key=lambda i: -row[i])
    return [(label_names[i], float(row[i])) for i in order[:top]]


def _show(text: str, labels: Sequence[tuple[str, float]], as_json: bool) -> None:
    if as_json:
        predictions = [{"label": label, "probability": probability} for label, probability in labels]
        print_json({"text": text, "predictions": predictions})
        return
    click.echo(visible(text))
    for label, probability in labels:
        click.echo(f"  {probability:6.1%}  {visible(label)}")
