"""`lora-a2 predict`"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lora_a2.commands.common import examples, print_json, run_dir_argument, trust_option
from lora_a2.commands.given import given_or_lines
from lora_a2.system.text import visible

if TYPE_CHECKING:
    import numpy as np

_BATCH = 64


@click.command(
    "predict",
    epilog=examples(
        'lora-a2 predict runs/helpdesk "my parcel never came"',
        'lora-a2 predict runs/helpdesk --top 1 "where is my refund" "the box is damaged"',
        "lora-a2 predict runs/helpdesk --json < texts.txt > labels.jsonl",
    ),
)
@run_dir_argument
@click.argument("texts", metavar="[TEXT]...", nargs=-1)
@click.option("--top", type=click.IntRange(min=1), default=3, show_default=True, help="Number of labels a text.")
@trust_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a text, one a line.")
def command(run_dir: Path, texts: tuple[str, ...], top: int, trust_remote_code: bool, as_json: bool) -> None:
    """Label texts with a finished run: the likeliest labels with their probabilities.

    Without TEXT, every line of standard input is a text; empty lines are skipped.
    """
    batches = _batches(given_or_lines(texts, "text"))

    from lora_a2.runs.directory import require_some

    require_some(run_dir)

    from lora_a2.runs.predict import load_predictor

    predictor = load_predictor(run_dir, trust_remote_code=trust_remote_code)
    for batch in batches:
        for text, row in zip(batch, predictor.predict(batch), strict=True):
            _show(text, _likeliest(predictor.label_names, row, top), as_json)


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    while batch := list(islice(texts, _BATCH)):
        yield batch


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
