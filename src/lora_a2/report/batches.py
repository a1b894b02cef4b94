"""What a comparison or a sweep knows beside its runs: how learning rates were chosen, and which runs failed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lora_a2.errors import RunError
from lora_a2.report.blocks import Cell, Section, table
from lora_a2.report.figures import on_examples
from lora_a2.report.inputs import find_runs
from lora_a2.tasks.base import Task
from lora_a2.tasks.registry import TASKS

Shown = TypeVar("Shown")
_KNOWN = ("arm", "runs", "candidates", "chosen", "at_edge")


def batch_sections(paths: Iterable[Path]) -> list[Section]:
    """The sections for all that lies at and below `paths`; none if nothing was tuned and nothing failed.

    Raises:
        RunError: a file of them is damaged.
    """
    folders = list(dict.fromkeys(path.resolve() for path in paths))
    tuned = [_read(file, _rates) for path in folders for file in sorted(path.rglob("tuning.json"))]
    failed = [_read(file, _failure) for path in folders for file in sorted(path.rglob("failures/*.json"))]
    return [*tuned, *([_failures(failed)] if failed else [])]


def _read(file: Path, shown: Callable[[Path, Any], Shown]) -> Shown:
    try:
        return shown(file, json.loads(file.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise RunError(f"{file} is damaged: {error!r}.") from error


def _rates(file: Path, groups: Sequence[dict[str, Any]]) -> Section:
    """A row an arm: the mean of the primary metric at every candidate, and the one chosen."""
    rates = sorted({candidate["learning_rate"] for group in groups for candidate in group["candidates"]})
    keys = [key for key in groups[0] if key not in _KNOWN]
    rows: list[list[Cell]] = []
    tasks: dict[str, Task] = {}
    for group in groups:
        task = _task(group["candidates"][0])
        tasks[task.name] = task
        means = {c["learning_rate"]: c[f"mean_{task.primary}"] for c in group["candidates"]}
        cells = [None if means.get(rate) is None else task.show(means[rate]) for rate in rates]
        chosen = None if group["chosen"] is None else f"{group['chosen']:g}"
        edge = "yes" if group["at_edge"] else ""
        rows.append([group["arm"], *(str(group[key]) for key in keys), *cells, chosen, edge, group["runs"]])
    header = ["Arm", *keys, *(f"{rate:g}" for rate in rates), "Chosen", "At the edge", "Runs"]
    named = " or ".join(task.shown for task in tasks.values())
    on = _tested_on(file.parent / "tuning") if len(tasks) == 1 else ""
    said = [f"Mean {named} of the tuning runs at each learning rate{on}. They have seeds and rounds of their own."]
    if any(group["at_edge"] for group in groups):
        said.append("A rate at the edge of the candidates may not be the best there is.")
    return Section("Learning rates", tuple(said), tables=(("", table(header, rows)),))


def _tested_on(folder: Path) -> str:
    """', each on 450 test examples', if the tuning runs are still there."""
    runs = find_runs([folder])[0] if any(folder.rglob("config.toml")) else []
    return f", each on {on_examples(runs)}" if runs else ""


def _task(candidate: Mapping[str, Any]) -> Task:
    return next(task for task in TASKS.values() if f"mean_{task.primary}" in candidate)


def _failure(file: Path, values: dict[str, str]) -> tuple[Cell, ...]:
    return f"{file.parent.parent.name}/{file.stem}", values["error"], values["message"]


def _failures(rows: Sequence[Sequence[Cell]]) -> Section:
    said = (
        "What each run ended with. Its traceback is in the folder failures; a sweep tries it again with --retry-failed."
    )
    return Section("Failed runs", (said,), tables=(("", table(["Run", "Error", "Message"], rows)),))
