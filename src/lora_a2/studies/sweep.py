"""A sweep: the runs of an experiment file, its learning rates tuned first, and one table of the results.

sweep.json            what was asked for; the same command, or --resume, goes on from there
tuning/               the batch of the tuning runs (`batch`), and
tuning.json           how good every candidate is and what was chosen, arm by arm
runs/                 the batch of the runs
results.{md,csv,parquet}, runs.{csv,parquet}   see `results`
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lora_a2.config.opening import absolute_names
from lora_a2.config.run import fields_of
from lora_a2.errors import ConfigError, RunError
from lora_a2.runs.directory import RunDirectory
from lora_a2.settings.errors import kebab
from lora_a2.studies.batch import Batch, PlannedRun, candidate_rates, check_evaluated, read_plan, tasks_of, write_plan
from lora_a2.studies.experiment import Experiment, Point, in_data_root, parse_experiment, points, varied
from lora_a2.studies.results import (
    REPEATS,
    cells,
    long_table,
    markdown,
    on_front,
    row,
    wide_table,
    write_tables,
)
from lora_a2.system.files import read_json_object, write_atomic
from lora_a2.system.locks import claimed
from lora_a2.tasks.base import Task

SWEEP_FILE = "sweep.json"


@dataclass(frozen=True)
class Request:
    """What was asked for: the file's content, a profile, options of the command line, where data sets lie, and where it began."""

    name: str
    text: str
    profile: str
    flags: Mapping[str, Any]
    data_root: str | None
    folder: str


@dataclass(frozen=True)
class Trial:
    """A tuning run: its point, the rate tried, and the group (arm and values of `per`) for which a rate is chosen."""

    point: Point
    rate: float
    group: tuple[str, ...]


class Sweep:
    """A sweep's directory; `tuning` is None if nothing is tuned."""

    def __init__(self, path: Path, request: Request) -> None:
        self.path, self.request = path, request
        self.experiment: Experiment = parse_experiment(request.text, request.profile, request.name)
        tuning = self.experiment.tuning
        if tuning is not None and "learning-rate" in request.flags:
            tuning = None  # a rate given on the command line leaves nothing to tune
        self._tuning = tuning
        self.trials = self._plan_trials()
        self.points = self._points(request.flags)
        for point in self.points:  # all of them are checked before anything runs
            config = point.config({})
            check_evaluated(PlannedRun(point.name, config), self.experiment.at_rounds)

    def _points(self, fixed: Mapping[str, Any], arms: Mapping[str, Mapping[str, Any]] | None = None) -> list[Point]:
        root = None if self.request.data_root is None else Path(self.request.data_root)
        found = points(self.experiment, fixed, arms)
        folder = Path(self.request.folder)
        return [replace(point, values=absolute_names(in_data_root(point.values, root), folder)) for point in found]

    def _plan_trials(self) -> list[Trial]:
        tuning = self._tuning
        if tuning is None:
            return []
        trials = []
        for point in self._points({**tuning.values, **self.request.flags}, tuning.arms):
            group = (point.arm, *(str(point.values.get(key)) for key in tuning.per))
            for suffix, rate in candidate_rates(point.config({}), tuning.rates, tuning.multiples).items():
                assert rate is not None, "a tuning has candidates"
                trial = Point(point.name + suffix, point.arm, {**point.values, "learning-rate": rate})
                trials.append(Trial(trial, rate, group))
        return trials

    @classmethod
    def begin(cls, path: Path, request: Request) -> Sweep:
        """A new sweep, or the one at `path` if it is the same.

        Raises:
            ConfigError: anything in the file or the options is wrong; nothing has been written then.
            RunError: something else is at `path`.
        """
        sweep = cls(path, request)
        if not (path / SWEEP_FILE).exists():
            RunDirectory.check_free(path)
        with claimed(path):
            sweep._claim()
        return sweep

    def _claim(self) -> None:
        path, request = self.path, self.request
        if (path / SWEEP_FILE).exists():
            if read_json_object(path / SWEEP_FILE) != json.loads(json.dumps(asdict(request))):
                raise RunError(
                    f"{path} holds a sweep with another file or other options: choose another --output-dir, or continue "
                    f"that one with 'lora-a2 sweep --resume {path}'."
                )
            return
        RunDirectory.check_free(path)  # another process may have been here since
        write_plan(path / SWEEP_FILE, asdict(request))

    @classmethod
    def open(cls, path: Path) -> Sweep:
        """A sweep that was begun; the directory may have been moved since.

        Raises:
            RunError: there is none at `path`, or it is damaged.
        """
        values = read_plan(path / SWEEP_FILE)
        try:
            return cls(path, Request(**values))
        except TypeError as error:
            raise RunError(f"{path / SWEEP_FILE} is damaged: {error}.") from error

    def tuning_batch(self) -> Batch | None:
        """The tuning runs, their plan written; None if nothing is tuned."""
        return self._batch("tuning", [trial.point for trial in self.trials]) if self.trials else None

    def _batch(self, folder: str, found: Sequence[Point]) -> Batch:
        path = self.path / folder
        runs = [PlannedRun(p.name, p.config({"output_dir": str(path / p.name)})) for p in found]
        batch = Batch(path, tuple(runs))
        batch.write()
        return batch

    def choose_rates(self, batch: Batch) -> list[dict[str, Any]]:
        """Chooses each group's rate by the mean of the task's primary metric over its finished tuning runs, and writes
        tuning.json.

        A candidate of which a run failed, or came to no finite number, is out. Ties go to the smaller rate.

        Raises:
            RunError: no candidate of a group is left, or its runs are of several tasks.
        """
        scores: dict[tuple[str, ...], dict[float, list[float | None]]] = {}
        tasks: dict[tuple[str, ...], list[Task]] = {}
        for trial, run, task in zip(self.trials, batch.runs, tasks_of(batch.runs), strict=True):
            summary = run.summary()
            found = scores.setdefault(trial.group, {}).setdefault(trial.rate, [])
            found.append(None if summary is None or not math.isfinite(summary.score) else summary.score)
            tasks.setdefault(trial.group, []).append(task)
        chosen = [self._choice(group, rates, _only(tasks[group], group[0])) for group, rates in scores.items()]
        write_atomic(self.path / "tuning.json", (json.dumps(chosen, indent=2) + "\n").encode())
        lost = [entry for entry in chosen if entry["chosen"] is None]
        if lost:
            raise RunError(f"No learning rate of {lost[0]['arm']} is left, as runs of each failed: see {batch.path}.")
        return chosen

    def _choice(
        self, group: tuple[str, ...], rates: Mapping[float, Sequence[float | None]], task: Task
    ) -> dict[str, Any]:
        assert self._tuning is not None
        means = {
            rate: float(np.mean([v for v in values if v is not None]))
            for rate, values in rates.items()
            if None not in values
        }
        best = min(sorted(means), key=lambda rate: task.worse(means[rate]), default=None)
        return {
            "arm": group[0],
            **dict(zip(self._tuning.per, group[1:], strict=True)),
            "runs": sum(map(len, rates.values())),
            "candidates": [
                {"learning_rate": rate, f"mean_{task.primary}": means.get(rate), task.plural: list(values)}
                for rate, values in rates.items()
            ],
            "chosen": best,
            "at_edge": best in (min(rates), max(rates)),
        }

    def batch(self, chosen: Sequence[Mapping[str, Any]]) -> Batch:
        """The runs, at the rates chosen, their plan written."""
        per = () if self._tuning is None else self._tuning.per
        rates = {(entry["arm"], *(entry[key] for key in per)): entry["chosen"] for entry in chosen}
        found = []
        for point in self.points:
            rate = rates.get((point.arm, *(str(point.values.get(key)) for key in per)))
            own = {} if rate is None else {"learning-rate": rate}
            found.append(replace(point, values={**point.values, **own}))
        return self._batch("runs", found)

    def tables(self, batch: Batch) -> tuple[pd.DataFrame, list[list[list[str]]]]:
        """Writes the tables; returns the cells and, for each task, the table as shown, header first."""
        each = tasks_of(batch.runs)
        tasks = list({task.name: task for task in each}.values())
        rows_of = zip(self.points, batch.runs, each, strict=True)
        runs = pd.DataFrame([row(*one, tasks, self.experiment.at_rounds) for one in rows_of])
        unused = [name for task in tasks for name in task.optional if runs[name].isna().all()]
        runs = runs.drop(columns=unused)
        keys = ["arm", *(key for key in varied(self.points) if key not in (REPEATS, "method"))]
        keys += ["learning-rate"] if self.trials and "learning-rate" not in keys else []
        keys += ["task"] if len(tasks) > 1 and "task" not in keys else []
        rows, columns = self.experiment.rows, self.experiment.columns
        if "task" in (*keys, *rows, *columns):
            runs["task"] = [task.name for task in each]  # the options need not say it
        for key in dict.fromkeys((*keys, *rows, *columns)):
            if key not in runs:
                runs[key] = _column([_value(run, key) for run in batch.runs])
        parts, shown = [], []
        for task in tasks:
            own = runs[[other is task for other in each]]
            part = cells(own, keys, task)
            part["pareto"] = on_front(part, [key for key in keys if key in _SETTING], task)
            parts.append(part)
            shown.append([long_table(part, keys, task)])
            if rows and columns:
                laid_out = cells(own, [*rows, *columns], task)
                shown[-1].insert(0, wide_table(laid_out, rows, columns, self.experiment.published, task))
        table = pd.concat(parts, ignore_index=True)
        named = " and ".join(task.shown + (" in percent" if task.is_fraction() else "") for task in tasks)
        text = f"# {self.experiment.title or self.request.name}\n\nProfile {self.request.profile}. "
        text += (
            f"{named[0].upper()}{named[1:]}, mean ± standard deviation over seeds; published figures in brackets.\n\n"
        )
        write_tables(self.path, runs, table, text + "\n".join(markdown(rows) for part in shown for rows in part))
        return table, [part[0] for part in shown]


_SETTING = {kebab(name) for name in fields_of("Data", "Clients", "Model")}
"""Options that make another problem: runs are compared at equal values of these."""


def _only(tasks: Sequence[Task], arm: str) -> Task:
    """The task of the tuning runs for which one rate is chosen.

    Raises:
        RunError: they are of several.
    """
    names = sorted({task.name for task in tasks})
    if len(names) > 1:
        raise RunError(
            f"The tuning runs of {arm} are of several tasks ({', '.join(names)}), for which one learning rate cannot be chosen: "
            'name in [tune] what tells them apart, such as per = ["data"].'
        )
    return tasks[0]


def _column(values: list[Any]) -> list[Any]:
    """One type a column, as parquet wants it."""
    return values if len({type(value) for value in values}) == 1 else [None if v is None else str(v) for v in values]


def _value(run: PlannedRun, key: str) -> Any:
    """An option's value as a cell of a table: lists as text, data sets and models by their last name."""
    value = getattr(run.config, key.replace("-", "_"))
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return Path(value).name if key in ("data", "model") else value


def default_path(name: str, profile: str) -> Path:
    """Where a sweep goes that was given no place: always the same, so that the same command goes on."""
    if not name:
        raise ConfigError("the experiment file needs a name.")
    return Path("runs") / f"{name}-{profile}"
