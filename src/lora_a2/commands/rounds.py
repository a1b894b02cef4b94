"""`lora-a2 rounds`"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_a2.commands.common import examples, json_option, print_json, run_dir_argument

if TYPE_CHECKING:
    from lora_a2.federation.records import RoundRecord


@click.command(
    "rounds",
    epilog=examples(
        "lora-a2 rounds runs/helpdesk-lora-a2-20260101-120000",
        "lora-a2 rounds runs/helpdesk-lora-a2-20260101-120000 --json",
    ),
)
@run_dir_argument
@json_option
def command(run_dir: Path, as_json: bool) -> None:
    """List the rounds of a run, finished or not, with their metrics and bytes.

    The best evaluated round is marked, and the one whose model is kept as the result: the last one, unless --keep of run says best.
    """
    from lora_a2.errors import RunError
    from lora_a2.federation.scores import best_round
    from lora_a2.runs.configured import config_of
    from lora_a2.runs.directory import RunDirectory

    run = RunDirectory.open(run_dir)
    records, config = run.load_records(), config_of(run)
    if not records:
        raise RunError(f"{run_dir} has no finished round yet.")
    best, kept = best_round(records), run.kept_round()
    if as_json:
        found = {"num_server_rounds": config.num_server_rounds, "finished": run.is_finished, "kept_round": kept}
        best_number = None if best is None else best.server_round
        print_json({**found, "best_round": best_number, "rounds": list(map(_row, records))})
        return
    marks = {kept: ["kept"]}
    if best is not None:
        marks.setdefault(best.server_round, []).insert(0, "best")
    _print(records, {number: ", ".join(words) for number, words in marks.items()})


def _row(record: RoundRecord) -> dict[str, Any]:
    """A round in the JSON output: its figures, without those of single clients."""
    values = record.to_json()
    metrics = {name: value for name, value in values["metrics"].items() if not isinstance(value, dict)}
    names = ("server_round", "trainable", "train_loss", "uploaded_bytes", "downloaded_bytes", "evaluation_bytes")
    return {
        **{name: values[name] for name in names},
        "clients": len(record.clients),
        "refused": len(record.refused),
        "seconds": sum(record.seconds.values()),
        "metrics": metrics,
    }


def _print(records: Sequence[RoundRecord], marks: dict[int, str]) -> None:
    from lora_a2.display.progress import human_bytes, human_time
    from lora_a2.display.tables import print_columns
    from lora_a2.tasks.base import PERSONAL
    from lora_a2.tasks.registry import task_of

    evaluations = [record.metrics for record in records]
    task, own = task_of(evaluations), any(PERSONAL in metrics for metrics in evaluations)
    names = [name for name in task.columns(evaluations) if any(name in metrics for metrics in evaluations)]
    heads = ["Round", "Loss", *map(task.title, names), *(["Personal"] if own else []), "Up", "Down", "Time", "Model"]
    rows = []
    for record in records:
        metrics: Any = record.metrics
        personal = metrics.get(PERSONAL, {})
        rows.append(
            [
                str(record.server_round),
                f"{record.train_loss:.3f}",
                *(task.show_metric(name, metrics[name]) if name in metrics else "" for name in names),
                *([task.show(personal[task.primary]) if personal else ""] if own else []),
                human_bytes(record.uploaded_bytes),
                human_bytes(record.downloaded_bytes),
                human_time(sum(record.seconds.values())),
                marks.get(record.server_round, ""),
            ]
        )
    print_columns(heads, rows, left=[len(heads) - 1])
