"""Several runs in one directory, resumable, failures kept apart; comparisons and sweeps are made of this.

plan.json            the configuration of every run, written before the first begins (a comparison's is compare.json)
NAME/                its run directory, with summary.json once it is finished
failures/NAME.json   why it failed, if it did: error, message, traceback
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from lora_a2.config.opening import learning_rate, with_absolute_paths
from lora_a2.config.run import RunConfig, make_config
from lora_a2.errors import ConfigError, RunError
from lora_a2.federation.observer import Observer
from lora_a2.runs.directory import RunDirectory
from lora_a2.runs.summary import RunSummary
from lora_a2.system.files import check, read_json_object, read_sealed, write_all, write_sealed
from lora_a2.tasks.base import Task
from lora_a2.tasks.registry import DEFAULT_TASK, get_task, measured


@dataclass(frozen=True)
class PlannedRun:
    """One run of a batch; `config` names its directory."""

    name: str
    config: RunConfig

    @property
    def path(self) -> Path:
        """Its run directory."""
        return Path(str(self.config.output_dir))

    def summary(self) -> RunSummary | None:
        """What came of it; None before it is finished."""
        done = self.path / "summary.json"
        return RunSummary(**read_sealed(done)) if done.exists() else None

    def run(self, observer: Observer) -> RunSummary:
        """Starts it, continues it, or reads what came of it."""
        if (found := self.summary()) is not None:
            return found
        from lora_a2.runs.jobs import launch, resume  # and with it PyTorch, which plans do without

        started = (self.path / "config.toml").exists()
        summary = resume(self.path, observer) if started else launch(self.config, observer)
        write_sealed(self.path / "summary.json", asdict(summary))
        return summary

    def score_at(self, server_round: int) -> float:
        """The task's primary metric after a round that was evaluated, of the personal models if the method makes such."""
        metrics = RunDirectory(self.path).load_records()[server_round - 1].metrics
        task = measured(metrics)
        assert task is not None, "the round was evaluated"
        return float(metrics.get("personal", metrics)[task.primary])

    def evaluates(self, server_round: int) -> bool:
        """Whether it has this round and evaluates after it."""
        last = self.config.num_server_rounds
        return 1 <= server_round <= last and (server_round % self.config.eval_every == 0 or server_round == last)

    @property
    def _failure(self) -> Path:
        return self.path.parent / "failures" / f"{self.name}.json"

    def failure(self) -> dict[str, str] | None:
        """Why it failed: error, message, traceback; None if it did not."""
        return read_sealed(self._failure) if self._failure.exists() else None

    def fail(self, error: str, message: str, trace: str = "") -> None:
        """Records that it failed."""
        self._failure.parent.mkdir(parents=True, exist_ok=True)
        values = {"error": error, "message": message, "traceback": trace}
        write_sealed(self._failure, values)

    def forgive(self) -> None:
        """Forgets that it failed, so that it is tried again."""
        self._failure.unlink(missing_ok=True)

    def attempt(self, observer: Observer) -> bool:
        """As `run`, but an error is recorded; says whether it is finished."""
        try:
            self.run(observer)
        except Exception as error:
            self.fail(type(error).__name__, str(error), traceback.format_exc())
            return False
        return True


@dataclass(frozen=True)
class Batch:
    """A directory and the runs in it, in order."""

    path: Path
    runs: tuple[PlannedRun, ...]

    def write(self, plan_file: str = "plan.json") -> None:
        """Writes the plan.

        Raises:
            RunError: the directory cannot be written.
            ConfigError: a model's own code is to run, for which a plan cannot give leave.
        """
        if any(run.config.trust_remote_code for run in self.runs):
            raise ConfigError(
                "trust-remote-code: only for a single run; comparisons and sweeps take models without code of their own."
            )
        plan = {
            run.name: with_absolute_paths(run.config).model_dump(
                by_alias=True, exclude_none=True, exclude={"output_dir"}
            )
            for run in self.runs
        }
        write_plan(self.path / plan_file, plan)

    @classmethod
    def open(cls, path: Path, plan_file: str = "plan.json") -> Self:
        """A batch that was begun; the directory may have been moved since.

        Raises:
            RunError: there is none at `path`, or its plan is damaged.
        """
        plan = read_plan(path / plan_file)
        try:
            runs = [
                PlannedRun(name, make_config(values, {"output_dir": str(path / name), "trust_remote_code": False}))
                for name, values in plan.items()
            ]
        except (ValueError, AttributeError) as error:
            raise RunError(f"{path / plan_file} is damaged: {error}.") from error
        return cls(path, tuple(runs))

    def open_runs(self) -> Sequence[PlannedRun]:
        """Those that are neither finished nor have failed."""
        return [run for run in self.runs if run.summary() is None and run.failure() is None]


def tasks_of(runs: Sequence[PlannedRun]) -> list[Task]:
    """What each run is of: as its result says, or its configuration. One that says neither is taken for what another is."""
    summaries = [run.summary() for run in runs]
    names = [run.config.task if s is None else s.task for run, s in zip(runs, summaries, strict=True)]
    usual = next(filter(None, names), DEFAULT_TASK)
    return [get_task(name or usual) for name in names]


def candidate_rates(
    usual: RunConfig, learning_rates: Sequence[float], multiples: Sequence[float]
) -> Mapping[str, float | None]:
    """What a run's name ends with → its learning rate (None: as if nothing had been asked for)."""
    if learning_rates:
        return {f"-lr{rate:g}": rate for rate in learning_rates}
    if multiples:
        return {f"-x{multiple:g}": multiple * learning_rate(usual) for multiple in multiples}
    return {"": None}


def check_evaluated(run: PlannedRun, server_rounds: Sequence[int]) -> None:
    """Refuses rounds of which nothing will be known.

    Raises:
        ConfigError: one of them is not evaluated, or may not be reached.
    """
    if server_rounds and run.config.early_stopping_patience is not None:
        raise ConfigError(
            "at-rounds: a run with early-stopping-patience may end before these rounds; leave one of the two out."
        )
    for number in server_rounds:
        if not run.evaluates(number):
            every, last = run.config.eval_every, run.config.num_server_rounds
            raise ConfigError(
                f"at-rounds: round {number} is not evaluated; with eval-every {every} and {last} rounds choose "
                f"multiples of {every} up to {last}, or {last}."
            )


def read_plan(path: Path) -> dict[str, Any]:
    """What `write_plan` was given.

    Raises:
        RunError: there is no such file, or it is not as it was written.
    """
    values = read_json_object(path)
    check(path.parent)
    return values


def write_plan(path: Path, values: Mapping[str, Any]) -> None:
    """Writes a JSON object, and the folder for it.

    Raises:
        RunError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_all(path.parent, {path.name: (json.dumps(values, indent=2) + "\n").encode()})
    except OSError as error:
        raise RunError(f"Output directory {path.parent} cannot be written: {error.strerror}.") from error
