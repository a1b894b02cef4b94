"""Several methods on the same split, seed and cohort order: a batch of runs, planned by compare.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from lora_a2.config.run import make_config
from lora_a2.core.names import known_name
from lora_a2.errors import RunError
from lora_a2.methods import METHODS
from lora_a2.runs.directory import RunDirectory
from lora_a2.runs.summary import RunSummary
from lora_a2.studies.batch import Batch, PlannedRun, candidate_rates, check_evaluated
from lora_a2.system.locks import claimed
from lora_a2.tasks.registry import get_task

PLAN_FILE = "compare.json"


class Comparison(Batch):
    """A comparison's directory and its runs, in order."""

    def check_evaluated(self, server_rounds: Sequence[int]) -> None:
        """Refuses rounds of which nothing will be known.

        Raises:
            ConfigError: one of them is not evaluated.
        """
        for run in self.runs:
            check_evaluated(run, server_rounds)


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
    for method in dict.fromkeys(known_name(name, METHODS) for name in methods):
        usual = make_config(file_values, {**flag_values, "method": method})
        for suffix, rate in candidate_rates(usual, learning_rates, multiples).items():
            own = {"method": method, "learning_rate": rate, "output_dir": str(path / (method + suffix))}
            config = make_config(file_values, {**flag_values, **{k: v for k, v in own.items() if v is not None}})
            runs.append(PlannedRun(method + suffix, config))
    comparison = Comparison(path, tuple(runs))
    comparison.check_evaluated(at_rounds)
    RunDirectory.check_free(path)
    with claimed(path):
        RunDirectory.check_free(path)  # another process may have been here since
        comparison.write(PLAN_FILE)
    return comparison


def open_comparison(path: Path) -> Comparison:
    """A comparison that was begun; the directory may have been moved since.

    Raises:
        RunError: there is none at `path`, or it is damaged.
    """
    if not (path / PLAN_FILE).is_file():
        raise RunError(f"{path} holds no comparison: expected {path / PLAN_FILE}.")
    return Comparison.open(path, PLAN_FILE)


def best_of_each(results: Sequence[tuple[PlannedRun, RunSummary]]) -> list[tuple[PlannedRun, RunSummary]]:
    """Of each method's runs the one with the best score."""
    best: dict[str, tuple[PlannedRun, RunSummary]] = {}
    for run, summary in results:
        held = best.get(run.config.method)
        worse = get_task(summary.task).worse
        if held is None or worse(summary.score) < worse(held[1].score):
            best[run.config.method] = run, summary
    return list(best.values())


def measured_on(runs: Sequence[PlannedRun]) -> str:
    """What the scores are of: "test", or "validation" where a part of the training set takes the test set's place."""
    return "test" if runs[0].config.validation_fraction is None else "validation"


def how_chosen(runs: Sequence[PlannedRun], score: str) -> str | None:
    """By what the best of several learning rates was chosen, and what that means; None: there was nothing to choose.

    `score` is the metric by which they were compared.
    """
    tried = max(Counter(run.config.method for run in runs).values())
    if tried == 1:
        return None
    best = f"Each method is shown at the best of {tried} learning rates by {measured_on(runs)} {score}"
    if measured_on(runs) == "validation":
        return f"{best}: for the test set, run each at its rate without --validation-fraction."
    return f"{best}, which flatters it: --validation-fraction 0.2 would choose without the test set."
