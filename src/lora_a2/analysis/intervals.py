"""How far a share of right examples may lie from the one of all the examples there could be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scipy import stats

from lora_a2.tasks.base import Task

LEVEL = 0.95
Interval = tuple[float, float]


def wilson(share: float, num_examples: int) -> Interval:
    """The 95 % interval, low and high, of a share (0..1) of `num_examples` independent examples.

    Wilson: "Probable Inference, the Law of Succession, and Statistical Inference", Journal of the American Statistical
    Association 1927. It stays between 0 and 1, and has a width where all are right, or none.

    Raises:
        ValueError: there are no examples, or the share is not between 0 and 1.
    """
    found = stats.binomtest(round(share * num_examples), num_examples).proportion_ci(LEVEL, method="wilson")
    return float(found.low), float(found.high)


def interval(task: Task, metrics: Mapping[str, Any], name: str | None = None) -> Interval | None:
    """That of a metric of an evaluation, by default the primary one; None if it is no share of the examples, or is not there."""
    name = name or task.primary
    if name not in task.proportions or name not in metrics or not metrics.get("num_examples"):
        return None
    return wilson(metrics[name], int(metrics["num_examples"]))


def client_intervals(task: Task, metrics: Mapping[str, Any]) -> dict[str, Interval]:
    """Client name → the interval of its value of the primary metric, of those whose number of test examples is recorded."""
    if task.primary not in task.proportions:
        return {}
    counts = metrics.get("per_client_examples", {})
    return {
        name: wilson(value, counts[name]) for name, value in metrics.get("per_client", {}).items() if name in counts
    }
