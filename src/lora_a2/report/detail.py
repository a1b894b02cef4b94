"""The sections of one run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from lora_a2.analysis.convergence import client_scores, discordance
from lora_a2.analysis.intervals import Interval, client_intervals
from lora_a2.analysis.similarity import gradient_similarity
from lora_a2.report import axes, charts
from lora_a2.report.baselines import joining
from lora_a2.report.blocks import Cell, Figure, Section, table, trimmed
from lora_a2.report.clients import labels
from lora_a2.report.figures import INTERVAL, TEST_EXAMPLES, interval_text
from lora_a2.report.inputs import Run, known
from lora_a2.report.matrices import ranks, similarity
from lora_a2.report.rounds import by_round, client_spread, ledger, losses, spread
from lora_a2.tasks.base import Task

MAX_BARS = 40
"""Clients with a bar each; of more the distribution is drawn."""


EXACT = 1e-4
"""Relative discordance below this is rounding in float32."""


def detail(run: Run, alone: bool = False) -> list[Section]:
    """All that a run's record says, in the order of the page; what it lacks is left out, with a sentence. Of a run `alone` on
    the page the first picture stands above already."""
    evaluated = [] if alone or run.score is None else [spread(run)]
    rounds = Section("Rounds", figures=(*evaluated, losses(run)), tables=(("Every round", ledger(run)),))
    parts = (clients, joining, labels, ranks, similarity, averaging, configuration)
    return [rounds, *(section for part in parts if (section := part(run)) is not None)]


def clients(run: Run) -> Section:
    """Each client's value of the primary metric at the last evaluation, and how far they lie apart from round to round."""
    task, title = run.task, run.task.headline
    scores, number = client_scores(run.record), axes.number_format(task)
    if scores.empty:
        return Section("Clients", ("No client has test examples of its own, or no round was evaluated yet.",))
    values = list(zip(map(str, scores.index), map(float, scores), strict=True))
    reach, counts = client_intervals(task, run.metrics), run.metrics.get("per_client_examples", {})
    rows = [{"name": name, "value": value, **_whisker(task, reach, counts, name)} for name, value in values]
    mean, low, high = float(scores.mean()), float(scores.min()), float(scores.max())
    if len(rows) <= MAX_BARS:
        how = f"worst first; the dashed line is their mean{', a thin line the 95 % interval' if reach else ''}"
        spec = charts.bars(rows, title, x_format=number, rule=mean)
    else:
        how, spec = "how many clients reach how much", charts.histogram(rows, title, x_format=number)
    figure = Figure(
        f"{title} per client",
        f"{title} of the global model on each client's own test examples, {how}.",
        spec,
        trimmed(
            table(
                ["Client", title, INTERVAL, TEST_EXAMPLES],
                [(n, task.show(v), interval_text(task, reach.get(n)), counts.get(n)) for n, v in values],
            ),
            keep=(title,),
        ),
    )
    deviation = task.show(float(scores.std(ddof=0)))
    said = (
        f"{len(rows)} clients: mean {task.show(mean)}, standard deviation {deviation}, from {task.show(low)} to "
        f"{task.show(high)}."
    )
    return Section("Clients", (said,), figures=(figure, client_spread(run)))


def _whisker(task: Task, reach: Mapping[str, Interval], counts: Mapping[str, int], name: str) -> dict[str, Any]:
    """What a client's bar has beside its value, if its interval is known."""
    if name not in reach:
        return {}
    low, high = reach[name]
    return {"low": low, "high": high, "interval": interval_text(task, reach[name]), "examples": counts[name]}


def averaging(run: Run) -> Section:
    """What averaging lost, and how far the clients drift apart."""
    lost, alike = known(discordance(run.record)["relative"]), known(gradient_similarity(run.record))
    figures, said = [], []
    if lost and max(value for _, value in lost) < EXACT:
        said.append(
            "Averaging lost nothing: the server's new weights are the mean of the clients' weights, up to rounding."
        )
    elif lost:
        text = (
            "How far the server's new weights lie from the mean of the clients' weights, over how far they moved: what "
            "averaging the factors apart, or cutting ranks, lost."
        )
        figures.append(by_round("Discordance per round", text, "Relative discordance", lost))
    if alike:
        text = "Mean cosine over all pairs of clients. Low is drift: clients pull in different directions."
        figures.append(by_round("Similarity of the clients' updates per round", text, "Mean cosine", alike))
    if not lost and not alike:
        said.append(
            "This run did not record what averaging lost, or its server does not see the clients' whole weights."
        )
    return Section("Averaging and drift", tuple(said), tuple(figures))


def configuration(run: Run) -> Section:
    """The configuration, the environment, and the command that runs it again."""
    path = run.record.path.absolute()
    again = shlex.join(["lora-a2", "run", "--config", str(path / "config.toml"), "--output-dir", f"{path}-again"])
    return Section(
        "Configuration",
        tables=(("Environment", table(["What", "Value"], _flat(run.record.environment))),),
        listings=(
            ("Run it again", again),
            ("config.toml", (path / "config.toml").read_text(encoding="utf-8").strip()),
        ),
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[Cell, ...]]:
    rows: list[tuple[Cell, ...]] = []
    for key, value in values.items():
        rows += _flat(value, f"{prefix}{key}: ") if isinstance(value, Mapping) else [(f"{prefix}{key}", str(value))]
    return rows
