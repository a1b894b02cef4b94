"""Several methods on the same split, seed and cohort order: a directory with a run directory for each, resumable.

compare.json     the configuration of every run, written before the first begins
NAME/            its run directory, with summary.json once it is finished
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from lora_a2.config import RunConfig, make_config
from lora_a2.errors import ConfigError, RunError
from lora_a2.files import write_atomic
from lora_a2.jobs import RunSummary, launch, resume
from lora_a2.runs import RunDirectory
from lora_a2.setup import learning_rate
from lora_a2.simulation import Observer


@dataclass(frozen=True)
class PlannedRun:
    """One run of a comparison; `config` names its directory."""

    name: str
    config: RunConfig

    @property
    def path(self) -> Path:
        """Its run directory."""
        return Path(str(self.config.output_dir))

    def run(self, observer: Observer) -> RunSummary:
        """Starts it, continues it, or reads what came of it."""
        done = self.path / "summary.json"
        if done.exists():
            return RunSummary(**json.loads(done.read_bytes()))
        started = (self.path / "config.toml").exists()
        summary = resume(self.path, observer) if started else launch(self.config, observer)
        write_atomic(done, (json.dumps(summary.to_json(), indent=2) + "\n").encode())
        return summary

    def accuracy_at(self, server_round: int) -> float:
        """The accuracy after a round that was evaluated, of the personal models where the method makes such."""
        metrics = RunDirectory(self.path).load_records(server_round)[-1].metrics
        return float(metrics.get("personal", metrics)["accuracy"])

    def evaluates(self, server_round: int) -> bool:
        """Whether it has this round and evaluates after it."""
        last = self.config.num_server_rounds
        return 1 <= server_round <= last and (server_round % self.config.eval_every == 0 or server_round == last)


@dataclass(frozen=True)
class Comparison:
    """A comparison's directory and its runs, in order."""

    path: Path
    runs: tuple[PlannedRun, ...]

    def check_evaluated(self, server_rounds: Sequence[int]) -> None:
        """Refuses rounds of which nothing will be known.

        Raises:
            ConfigError: one of them is not evaluated.
        """
        for number in server_rounds:
            for run in self.runs:
                if not run.evaluates(number):
                    every, last = run.config.eval_every, run.config.num_server_rounds
                    raise ConfigError(
                        f"at-rounds: round {number} is not evaluated; with eval-every {every} and {last} rounds choose "
                        f"multiples of {every} up to {last}, or {last}."
                    )


def plan_comparison(
    methods: Sequence[str],
    learning_rates: Sequence[float],
    file_values: Mapping[str, Any],
    flag_values: Mapping[str, Any],
    *,
    multiples: Sequence[float] = (),
    at_rounds: Sequence[int] = (),
) -> Comparison:
    """Checks every configuration, then writes the plan; options are as for a run, `output_dir` is the comparison's.

    Args:
        methods: names.
        learning_rates: every method runs at each of these; none: at `multiples`, or at its own.
        file_values: options of a configuration file.
        flag_values: options of the command line, which win.
        multiples: every method runs at each of these times the rate that it would have.
        at_rounds: rounds that every run must evaluate.

    Raises:
        ConfigError: an option that one of the methods does not allow, or a round that is not evaluated.
        RunError: the directory is taken, or cannot be written.
    """
    given = flag_values.get("output_dir") or file_values.get("output-dir")
    path = Path(given) if given else Path("runs") / f"compare-{datetime.now():%Y%m%d-%H%M%S}"
    runs = []
    for method in dict.fromkeys(methods):
        usual = make_config(file_values, {**flag_values, "method": method})
        for suffix, rate in _rates(usual, learning_rates, multiples).items():
            own = {"method": method, "learning_rate": rate, "output_dir": str(path / (method + suffix))}
            config = make_config(file_values, {**flag_values, **{k: v for k, v in own.items() if v is not None}})
            runs.append(PlannedRun(method + suffix, config))
    comparison = Comparison(path, tuple(runs))
    comparison.check_evaluated(at_rounds)
    RunDirectory.check_free(path)
    plan = {run.name: run.config.model_dump(by_alias=True, exclude_none=True, exclude={"output_dir"}) for run in runs}
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_atomic(path / "compare.json", (json.dumps(plan, indent=2) + "\n").encode())
    except OSError as error:
        raise RunError(f"Output directory {path} cannot be written: {error.strerror}.") from error
    return comparison


def _rates(usual: RunConfig, learning_rates: Sequence[float], multiples: Sequence[float]) -> Mapping[str, float | None]:
    """What a run's name ends with → its learning rate (None: as if nothing had been asked for)."""
    if learning_rates:
        return {f"-lr{rate:g}": rate for rate in learning_rates}
    if multiples:
        return {f"-x{multiple:g}": multiple * learning_rate(usual) for multiple in multiples}
    return {"": None}


def open_comparison(path: Path) -> Comparison:
    """A comparison that was begun; the directory may have been moved since.

    Raises:
        RunError: there is none at `path`, or it is damaged.
    """
    if not (path / "compare.json").is_file():
        raise RunError(f"{path} holds no comparison: expected {path / 'compare.json'}.")
    try:
        plan = json.loads((path / "compare.json").read_bytes())
        runs = [
            PlannedRun(name, make_config(values, {"output_dir": str(path / name)})) for name, values in plan.items()
        ]
    except (ValueError, AttributeError) as error:
        raise RunError(f"{path / 'compare.json'} is damaged: {error}.") from error
    return Comparison(path, tuple(runs))


def best_of_each(results: Sequence[tuple[PlannedRun, RunSummary]]) -> list[tuple[PlannedRun, RunSummary]]:
    """Of each method's runs the one of highest accuracy: the personal models' where it makes such."""

    def score(summary: RunSummary) -> float:
        return summary.accuracy if summary.personal_accuracy is None else summary.personal_accuracy

    best: dict[str, tuple[PlannedRun, RunSummary]] = {}
    for run, summary in results:
        held = best.get(run.config.method)
        if held is None or score(summary) > score(held[1]):
            best[run.config.method] = run, summary
    return list(best.values())
