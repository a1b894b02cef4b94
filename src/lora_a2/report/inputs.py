"""The runs of a report: run directories, and those below the folders of comparisons and sweeps."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from lora_a2.analysis.convergence import curve
from lora_a2.analysis.intervals import Interval, interval
from lora_a2.analysis.record import RunRecord, load_run
from lora_a2.config.run import make_config
from lora_a2.errors import ConfigError, RunError
from lora_a2.federation.scores import best_round, out_of_patience
from lora_a2.tasks.base import Task


@dataclass(frozen=True)
class Run:
    """A run and what the page calls it."""

    name: str
    record: RunRecord

    @cached_property
    def curve(self) -> pd.DataFrame:
        """Figures by server round, see `analysis.convergence.curve`."""
        return curve(self.record)

    def by_round(self, name: str) -> list[tuple[int, float]]:
        """Server round and value of a column of `curve`, if there is one."""
        return known(self.curve[name])

    @property
    def uploaded_bytes(self) -> int:
        """Of all rounds so far."""
        return int(self.curve["uploaded_bytes"].iloc[-1])

    @property
    def task(self) -> Task:
        """What the model is fine-tuned for."""
        return self.record.task

    @property
    def score(self) -> float | None:
        """The task's primary metric of the global model at the last evaluation; None before the first."""
        return self.metrics.get(self.task.primary)

    @property
    def worse(self) -> float:
        """A number that is the larger, the worse the run is; those that were not evaluated come last."""
        return math.inf if self.score is None else self.task.worse(self.score)

    @property
    def rounds_planned(self) -> int:
        """As configured, or as many as there are if it ended early; fewer are there while it runs."""
        if out_of_patience(self.record.config.get("early-stopping-patience"), self.record.rounds):
            return len(self.record.rounds)
        return int(self.record.config["num-server-rounds"])

    @property
    def is_finished(self) -> bool:
        """Whether all of them are there."""
        return len(self.record.rounds) >= self.rounds_planned

    @property
    def interval(self) -> Interval | None:
        """The 95 % interval of the score, if it is a share of examples."""
        return interval(self.task, self.metrics)

    @property
    def num_test_examples(self) -> int | None:
        """Of the last evaluation; None before the first."""
        found = self.metrics.get("num_examples")
        return None if found is None else int(found)

    @property
    def date(self) -> str | None:
        """The day on which it began, in UTC; None if that was not recorded."""
        started = self.record.environment.get("started")
        return None if started is None else str(started)[:10]

    @property
    def metrics(self) -> dict[str, Any]:
        """Those of the round that is kept, which is that of the last evaluation unless the run says otherwise; empty before."""
        if self.record.config.get("keep") == "best" and (best := best_round(self.record.rounds)) is not None:
            return dict(best.metrics)
        found = [record.metrics for record in self.record.rounds if record.metrics]
        return dict(found[-1]) if found else {}

    @property
    def full_bytes(self) -> int:
        """What full fine-tuning would have uploaded in the same rounds."""
        size = int(self.record.environment["full_parameters"])
        return 4 * size * sum(len(record.clients) for record in self.record.rounds)

    @property
    def is_full(self) -> bool:
        """Whether this is full fine-tuning itself."""
        try:
            return make_config(self.record.config, {}).chosen_method().full
        except ConfigError:
            return False  # a run of another release


def known(values: pd.Series) -> list[tuple[int, float]]:
    """Server round and value of a series by server round, without NaN."""
    present = values.dropna()
    return list(zip(map(int, present.index.to_list()), map(float, present.to_list()), strict=True))


def find_runs(paths: Iterable[Path]) -> tuple[list[Run], list[Path]]:
    """All runs at and below `paths`, by path: those with a finished round, and the directories of the others.

    A sweep's tuning runs are not among them.

    Raises:
        RunError: a path without a run, a damaged run, runs of several tasks, or no finished round anywhere.
    """
    folders: dict[Path, None] = {}
    for path in paths:
        found = [file.parent.resolve() for file in path.rglob("config.toml") if _is_run(file.parent, path)]
        if not found:
            raise RunError(f"{path} holds no run: expected config.toml and environment.json in it or below it.")
        folders |= dict.fromkeys(sorted(found))
    records = [load_run(folder) for folder in folders]
    begun = [record for record in records if record.rounds]
    if not begun:
        raise RunError(f"{records[0].path} has no finished round yet: there is nothing to show.")
    tasks = sorted({record.task.name for record in begun})
    if len(tasks) > 1:
        raise RunError(
            f"These runs are of several tasks ({', '.join(tasks)}), which are not compared: name those of one."
        )
    names = _names([record.path for record in begun])
    runs = [Run(name, record) for name, record in zip(names, begun, strict=True)]
    return runs, [record.path for record in records if not record.rounds]


def _is_run(folder: Path, path: Path) -> bool:
    return (folder / "environment.json").is_file() and "tuning" not in folder.relative_to(path).parts


def _names(paths: list[Path]) -> list[str]:
    """Paths from the deepest folder that holds all; a single run is called by its folder's name."""
    common = Path(os.path.commonpath([path.parent for path in paths]))
    return [path.relative_to(common).as_posix() for path in paths]
