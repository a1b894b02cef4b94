"""Runs that differ in their seed alone, as one: what they are called, what they came to, and their mean by round."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lora_a2.report.inputs import Run
from lora_a2.tasks.base import Task

SEED = "seed"
NOT_COMPARED = ("output-dir", "report-to", "clients-per-pass", "num-workers", "device", "baselines", "personalize")
"""What a run's result does not depend on."""


@dataclass(frozen=True)
class Point:
    """A group after a round that all its counted runs evaluated: means of the primary metric and of the bytes so far.

    `low` and `high` are the least and the greatest of the runs' scores.
    """

    server_round: int
    uploaded: float
    downloaded: float
    score: float
    low: float
    high: float


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seed; often only one.

    Attributes:
        name: unlike that of every other group.
        variant: the options by which it differs from others of its method, as text; empty if it is the only one.
    """

    name: str
    variant: str
    runs: tuple[Run, ...]

    @property
    def method(self) -> str:
        """The method of all of them."""
        return self.runs[0].record.method

    @property
    def task(self) -> Task:
        """Likewise."""
        return self.runs[0].task

    @cached_property
    def counted(self) -> tuple[Run, ...]:
        """Those that its figures are of: the finished ones, or, if there are none, those that were evaluated."""
        evaluated = tuple(run for run in self.runs if run.score is not None)
        return tuple(run for run in evaluated if run.is_finished) or evaluated

    @cached_property
    def scores(self) -> list[float]:
        """The primary metric of each counted run at its last evaluation."""
        return [run.score for run in self.counted if run.score is not None]

    @property
    def score(self) -> float | None:
        """Their mean; None before the first evaluation."""
        return float(np.mean(self.scores)) if self.scores else None

    @property
    def worse(self) -> float:
        """A number that is the larger, the worse the mean is; groups without an evaluation come last."""
        return math.inf if self.score is None else self.task.worse(self.score)

    @cached_property
    def points(self) -> list[Point]:
        """Its curve."""
        if not self.counted:
            return []
        columns = ("uploaded_bytes", "downloaded_bytes", self.task.primary)
        found = [{name: dict(run.by_round(name)) for name in columns} for run in self.counted]
        shared = set.intersection(*(set(own[self.task.primary]) for own in found))
        points = []
        for number in sorted(shared):
            up, down, scores = ([own[name][number] for own in found] for name in columns)
            points.append(
                Point(
                    number, float(np.mean(up)), float(np.mean(down)), float(np.mean(scores)), min(scores), max(scores)
                )
            )
        return points


def grouped(runs: Sequence[Run]) -> list[Group]:
    """The groups of `runs`, in order of appearance. A run alone is called by its own name, others by method and options."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        same = {key: value for key, value in run.record.config.items() if key not in (SEED, *NOT_COMPARED)}
        found.setdefault(json.dumps(same, sort_keys=True, default=str), []).append(run)
    keys = [key for key in differing(runs) if key not in (SEED, "method")]
    taken: set[str] = set()
    groups = []
    for own in found.values():
        peers = [run for run in runs if run.record.method == own[0].record.method]
        variant = _variant(own[0], [key for key in keys if len({configured(run, key) for run in peers}) > 1])
        name = own[0].name if len(own) == 1 else ", ".join(filter(None, (own[0].record.method, variant)))
        if name in taken:
            name = f"{name} ({own[0].name})"
        taken.add(name)
        groups.append(Group(name, variant, tuple(own)))
    return groups


def differing(runs: Sequence[Run]) -> list[str]:
    """The keys of the configuration in which runs differ."""
    keys = dict.fromkeys(key for run in runs for key in run.record.config)
    return [key for key in keys if key not in NOT_COMPARED and len({configured(run, key) for run in runs}) > 1]


def configured(run: Run, key: str) -> str | None:
    """A value of the configuration as text; None if it is not set."""
    value: Any = run.record.config.get(key)
    if value is None:
        return None
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _variant(run: Run, keys: Sequence[str]) -> str:
    return ", ".join(f"{key} {configured(run, key) or 'unset'}" for key in keys)
