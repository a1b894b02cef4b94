"""The sections of one run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lora_a2.analysis.convergence import client_scores, discordance
from lora_a2.analysis.similarity import gradient_similarity
from lora_a2.display.progress import human_bytes
from lora_a2.report import charts
from lora_a2.report.blocks import Cell, Figure, Section, Table, table
from lora_a2.report.clients import labels
from lora_a2.report.inputs import Run, known
from lora_a2.report.matrices import ranks, similarity

MAX_BARS = 40
"""Clients with a bar each; of more the distribution is drawn."""


EXACT = 1e-4
"""Relative discordance below this is rounding in float32."""


def detail(run: Run) -> list[Section]:
    """All that a run's record says, in the order of the page; what it lacks is left out, with a sentence."""
    parts = (rounds, clients, labels, ranks, similarity, averaging, configuration)
    return [section for part in parts if (section := part(run)) is not None]


def rounds(run: Run) -> Section:
    """The primary metric and its spread over clients, and the training loss, by round."""
    task, name = run.task, run.task.headline
    shown = {
        task.primary: "all examples",
        "client_mean": "clients' mean",
        "client_worst_tenth": "worst tenth of clients",
    }
    evaluated = [(text, x, y) for metric, text in shown.items() for x, y in run.by_round(metric)]
    spread = Figure(
        f"{name} per round, and over clients",
        f"Test {task.shown} of the global model: of all examples together, the mean over the clients, and of the tenth of the "
        "clients where it is worst.",
        charts.lines(
            [{"series": n, "x": x, "y": y} for n, x, y in evaluated], name, y_format=charts.number_format(task)
        ),
        table(["Series", "Server round", name], [(n, x, task.show(y)) for n, x, y in evaluated]),
    )
    loss = "Mean of the clients' losses while they trained, weighted by their number of examples."
    losses = _by_round("Training loss per round", loss, "Loss", run.by_round("train_loss"))
    figures = (spread, losses) if evaluated else (losses,)
    return Section("Rounds", figures=figures, tables=(("Every round", _ledger(run)),))


def _by_round(title: str, description: str, y: str, points: Sequence[tuple[int, float]]) -> Figure:
    """One line over the rounds."""
    rows = [{"series": y, "x": x, "y": value} for x, value in points]
    numbers = table(["Server round", y], [(x, f"{value:.4g}") for x, value in points])
    return Figure(title, description, charts.lines(rows, y, y_format=".3~g"), numbers)


def _ledger(run: Run) -> Table:
    task = run.task
    header = [
        "Round",
        "Trained",
        "Clients",
        "Refused",
        task.headline,
        "Training loss",
        "Uploaded",
        "Downloaded",
        "Seconds",
    ]
    rows: list[tuple[Cell, ...]] = [
        (
            record.server_round,
            " and ".join(record.trainable),
            len(record.clients),
            len(record.refused),
            task.show(record.metrics[task.primary]) if record.metrics else None,
            f"{record.train_loss:.3f}",
            human_bytes(record.uploaded_bytes),
            human_bytes(record.downloaded_bytes),
            f"{sum(record.seconds.values()):.1f}",
        )
        for record in run.record.rounds
    ]
    return table(header, rows)


def clients(run: Run) -> Section:
    """Each client's value of the primary metric at the last evaluation, and how far they lie apart from round to round."""
    task, title = run.task, run.task.headline
    scores, number = client_scores(run.record), charts.number_format(task)
    if scores.empty:
        return Section("Clients", ("No client has test examples of its own, or no round was evaluated yet.",))
    values = list(zip(map(str, scores.index), map(float, scores), strict=True))
    rows = [{"name": name, "value": value} for name, value in values]
    mean, low, high = float(scores.mean()), float(scores.min()), float(scores.max())
    if len(rows) <= MAX_BARS:
        how = "worst first; the dashed line is their mean"
        spec = charts.bars(rows, title, x_format=number, rule=mean)
    else:
        how, spec = "how many clients reach how much", charts.histogram(rows, title, x_format=number)
    figure = Figure(
        f"{title} per client",
        f"{title} of the global model on each client's own test examples, {how}.",
        spec,
        table(["Client", title], [(name, task.show(value)) for name, value in values]),
    )
    deviation = task.show(float(scores.std(ddof=0)))
    said = (
        f"{len(rows)} clients: mean {task.show(mean)}, standard deviation {deviation}, from {task.show(low)} to "
        f"{task.show(high)}."
    )
    return Section("Clients", (said,), figures=(figure, _spread(run)))


def _spread(run: Run) -> Figure:
    """Tenth, middle and nine tenths of the clients' values of the primary metric by round."""
    task = run.task
    evaluated = [
        (record.server_round, list(record.metrics.get("per_client", {}).values())) for record in run.record.rounds
    ]
    found = [(number, *np.quantile(values, (0.1, 0.5, 0.9)).tolist()) for number, values in evaluated if values]
    return Figure(
        "Spread over clients per round",
        f"The median client's {task.shown}, in the band that holds the middle eight tenths of the clients.",
        charts.band(
            [{"x": x, "low": low, "mid": mid, "high": high} for x, low, mid, high in found],
            task.headline,
            y_format=charts.number_format(task),
        ),
        table(
            ["Server round", "Lowest tenth below", "Median", "Highest tenth above"],
            [(x, *map(task.show, shares)) for x, *shares in found],
        ),
    )


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
        figures.append(_by_round("Discordance per round", text, "Relative discordance", lost))
    if alike:
        text = "Mean cosine over all pairs of clients. Low is drift: clients pull in different directions."
        figures.append(_by_round("Similarity of the clients' updates per round", text, "Mean cosine", alike))
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
