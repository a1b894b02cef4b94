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
from lora_a2.errors import RunError
from lora_a2.files import write_atomic
from lora_a2.jobs import RunSummary, launch, resume
from lora_a2.runs import RunDirectory
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


@dataclass(frozen=True)
class Comparison:
    """A comparison's directory and its runs, in order."""

    path: Path
    runs: tuple[PlannedRun, ...]


def plan_comparison(
    methods: Sequence[str],
    learning_rates: Sequence[float],
    file_values: Mapping[str, Any],
    flag_values: Mapping[str, Any],
) -> Comparison:
    """Checks every configuration, then writes the plan; options are as for a run, `output_dir` is the comparison's.

    Raises:
        ConfigError: an option that one of the methods does not allow.
        RunError: the directory is taken, or cannot be written.
    """
    rates: list[float | None] = list(learning_rates) or [None]
    given = flag_values.get("output_dir") or file_values.get("output-dir")
    path = Path(given) if given else Path("runs") / f"compare-{datetime.now():%Y%m%d-%H%M%S}"
    runs = []
    for method in dict.fromkeys(methods):
        for rate in dict.fromkeys(rates):
            name = method if rate is None else f"{method}-lr{rate:g}"
            own: dict[str, Any] = {"method": method, "output_dir": str(path / name)}
            own |= {} if rate is None else {"learning_rate": rate}
            runs.append(PlannedRun(name, make_config(file_values, {**flag_values, **own})))
    RunDirectory.check_free(path)
    plan = {run.name: run.config.model_dump(by_alias=True, exclude_none=True, exclude={"output_dir"}) for run in runs}
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_atomic(path / "compare.json", (json.dumps(plan, indent=2) + "\n").encode())
    except OSError as error:
        raise RunError(f"Output directory {path} cannot be written: {error.strerror}.") from error
    return Comparison(path, tuple(runs))


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
