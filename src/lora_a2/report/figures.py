"""Numbers of an evaluation as the page writes them."""

from __future__ import annotations

from collections.abc import Sequence

from lora_a2.analysis.intervals import Interval
from lora_a2.report.inputs import Run
from lora_a2.tasks.base import Task

INTERVAL, TEST_EXAMPLES = "95 % interval", "Test examples"
"""Heads of the columns that stand beside an accuracy."""


def interval_text(task: Task, found: Interval | None, name: str | None = None) -> str | None:
    """(0.69, 0.734) of accuracy → '69.0–73.4 %'."""
    if found is None:
        return None
    low, high = (task.number(name or task.primary, value) for value in found)
    return f"{low}–{high}{task.unit(name)}"


def shared_count(runs: Sequence[Run]) -> int | None:
    """On how many test examples all of them were evaluated; None if these are not as many, or not known."""
    counts = {run.num_test_examples for run in runs}
    return counts.pop() if len(counts) == 1 else None


def on_examples(runs: Sequence[Run]) -> str:
    """'1,200 test examples', where all runs were evaluated on as many; else 'the test examples'."""
    count = shared_count(runs)
    return "the test examples" if count is None else f"{count:,} test examples"
