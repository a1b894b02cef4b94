"""A sweep: the runs of an experiment file, its learning rates tuned first, and one table of the results.

sweep.json            what was asked for; the same command, or --resume, goes on from there
tuning/               the batch of the tuning runs (`batch`), and
tuning.json           every candidate's accuracy and what was chosen, arm by arm
runs/                 the batch of the runs
results.{md,csv,parquet}, runs.{csv,parquet}   see `results`
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lora_a2.analysis.convergence import pareto_front
from lora_a2.config.run import fields_of
from lora_a2.config.setup import absolute_names
from lora_a2.errors import ConfigError, RunError
from lora_a2.runs.directory import RunDirectory
from lora_a2.settings.errors import kebab
from lora_a2.studies.batch import Batch, PlannedRun, candidate_rates, check_evaluated, read_plan, write_plan
from lora_a2.studies.experiment import Experiment, Point, in_data_root, parse_experiment, points, varied
from lora_a2.studies.results import (
    AT_ROUND,
    COSTS,
    MEASURES,
    REPEATS,
    cells,
    long_table,
    markdown,
    wide_table,
    write_tables,
)
from lora_a2.system.files import read_json_object, write_atomic
from lora_a2.system.locks import claimed

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
        """Chooses each group's rate by the mean accuracy over its finished tuning runs, and writes tuning.json.

        A candidate of which a run failed is out. Ties go to the smaller rate.

        Raises:
            RunError: no candidate of a group is left.
        """
        scores: dict[tuple[str, ...], dict[float, list[float | None]]] = {}
        for trial, run in zip(self.trials, batch.runs, strict=True):
            summary = run.summary()
            found = scores.setdefault(trial.group, {}).setdefault(trial.rate, [])
            found.append(None if summary is None else summary.score)
        chosen = [self._choice(group, rates) for group, rates in scores.items()]
        write_atomic(self.path / "tuning.json", (json.dumps(chosen, indent=2) + "\n").encode())
        lost = [entry for entry in chosen if entry["chosen"] is None]
        if lost:
            raise RunError(f"No learning rate of {lost[0]['arm']} is left, as runs of each failed: see {batch.path}.")
        return chosen

    def _choice(self, group: tuple[str, ...], rates: Mapping[float, Sequence[float | None]]) -> dict[str, Any]:
        assert self._tuning is not None
        means = {
            rate: float(np.mean([v for v in values if v is not None]))
            for rate, values in rates.items()
            if None not in values
        }
        best = max(sorted(means), key=lambda rate: means[rate], default=None)
        return {
            "arm": group[0],
            **dict(zip(self._tuning.per, group[1:], strict=True)),
            "runs": sum(map(len, rates.values())),
            "candidates": [
                {"learning_rate": rate, "mean_accuracy": means.get(rate), "accuracies": list(values)}
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

    def tables(self, batch: Batch) -> tuple[pd.DataFrame, list[list[str]]]:
        """Writes the tables; returns the cells and the table as shown, header first."""
        runs = pd.DataFrame(
            [_row(*each, self.experiment.at_rounds) for each in zip(self.points, batch.runs, strict=True)]
        )
        keys = ["arm", *(key for key in varied(self.points) if key not in (REPEATS, "method"))]
        keys += ["learning-rate"] if self.trials and "learning-rate" not in keys else []
        rows, columns = self.experiment.rows, self.experiment.columns
        for key in dict.fromkeys((*keys, *rows, *columns)):
            if key not in runs:
                runs[key] = _column([_value(run, key) for run in batch.runs])
        table = cells(runs, keys)
        table["pareto"] = on_front(table, [key for key in keys if key in _TASK])
        shown = [long_table(table, keys)]
        if rows and columns:
            shown.insert(0, wide_table(cells(runs, [*rows, *columns]), rows, columns, self.experiment.published))
        text = f"# {self.experiment.title or self.request.name}\n\nProfile {self.request.profile}. "
        text += "Accuracy in percent, mean ± standard deviation over seeds; published figures in brackets.\n\n"
        write_tables(self.path, runs, table, text + "\n".join(map(markdown, shown)))
        return table, shown[0]


_TASK = {kebab(name) for name in fields_of("Data", "Clients", "Model")}
"""Options that make another task: accuracies are compared at equal values of these."""


def on_front(table: pd.DataFrame, task: Sequence[str]) -> list[bool]:
    """Which cells no other cell of the same task beats in both accuracy and bytes uploaded."""
    front = pd.Series(False, index=table.index)
    known = table[table["accuracy_mean"].notna()]
    for _, group in known.groupby([*task], dropna=False) if task else [((), known)]:
        front[group.index] = pareto_front(group["uploaded_bytes"].to_numpy(), group["accuracy_mean"].to_numpy())
    return [bool(value) for value in front]


def _row(point: Point, run: PlannedRun, at_rounds: Sequence[int]) -> dict[str, Any]:
    summary = run.summary()
    found = {} if summary is None else summary.to_json()
    status = "done" if summary is not None else "open" if run.failure() is None else "failed"
    shared = {"run": run.name, "arm": point.arm, "method": run.config.method, REPEATS: run.config.seed}
    numbers = {name: np.nan if found.get(name) is None else float(found[name]) for name in (*MEASURES, *COSTS)}
    rounds = {f"{AT_ROUND}{n}": run.score_at(n) if summary is not None else np.nan for n in at_rounds}
    return {**shared, "status": status, **numbers, **rounds}


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
