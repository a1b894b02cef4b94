"""One run by round: the primary metric over all examples and over clients, the training loss, and every round in a table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lora_a2.analysis.intervals import interval
from lora_a2.display.progress import human_bytes
from lora_a2.report import axes
from lora_a2.report.blocks import Cell, Figure, Table, table, trimmed
from lora_a2.report.curves import At, Curve, Reading, lines
from lora_a2.report.figures import INTERVAL, TEST_EXAMPLES, interval_text, on_examples
from lora_a2.report.inputs import Run

SHOWN = {"client_mean": "clients' mean", "client_worst_tenth": "worst tenth of clients"}
"""Figures of the clients' own test examples, beside that of all examples."""


def spread(run: Run) -> Figure:
    """The primary metric of all examples, in the band of its 95 % interval, and its spread over clients."""
    task, name = run.task, run.task.headline
    reach = {record.server_round: interval(task, record.metrics) for record in run.record.rounds}
    series = {"all examples": [At(x, y, *(reach[x] or (None, None))) for x, y in run.by_round(task.primary)]}
    series |= {text: [At(x, y) for x, y in run.by_round(metric)] for metric, text in SHOWN.items()}
    series = {text: points for text, points in series.items() if points}
    banded = any(reach.values())
    text = (
        f"Test {task.shown} of the global model: of {on_examples([run])} together{', in the band of the 95 % interval' if banded else ''}"
        ", the mean over the clients, and of the tenth of the clients where it is worst."
    )
    drawn = [Curve(text, points, text, text) for text, points in series.items()]
    across = axes.rounds([point.x for points in series.values() for point in points])
    reading = Reading(name, axes.number_format(task), band=("95 % from", "95 % to"))
    rows = [
        (text, int(p.x), task.show(p.y), None if p.low is None else interval_text(task, reach[int(p.x)]))
        for text, points in series.items()
        for p in points
    ]
    numbers = trimmed(table(["Series", "Server round", name, INTERVAL], rows), keep=("Server round", name))
    return Figure(f"{name} per round, and over clients", text, lines(drawn, across, reading), numbers)


def losses(run: Run) -> Figure:
    """The training loss."""
    text = "Mean of the clients' losses while they trained, weighted by their number of examples."
    return by_round("Training loss per round", text, "Loss", run.by_round("train_loss"))


def by_round(title: str, description: str, y: str, points: Sequence[tuple[int, float]]) -> Figure:
    """One line over the rounds."""
    spec = lines([Curve("", [At(*point) for point in points])], axes.rounds([x for x, _ in points]), Reading(y, ".3~g"))
    return Figure(title, description, spec, table(["Server round", y], [(x, f"{value:.4g}") for x, value in points]))


def client_spread(run: Run) -> Figure:
    """Tenth, middle and nine tenths of the clients' values of the primary metric."""
    task = run.task
    evaluated = [
        (record.server_round, list(record.metrics.get("per_client", {}).values())) for record in run.record.rounds
    ]
    found = [(number, *np.quantile(values, (0.1, 0.5, 0.9)).tolist()) for number, values in evaluated if values]
    ends = ("Lowest tenth below", "Highest tenth above")
    curve = Curve("", [At(x, mid, low, high) for x, low, mid, high in found])
    return Figure(
        "Spread over clients per round",
        f"The median client's {task.shown}, in the band that holds the middle eight tenths of the clients.",
        lines(
            [curve],
            axes.rounds([x for x, *_ in found]),
            Reading(f"{task.headline} of the median client", axes.number_format(task), band=ends),
        ),
        table(["Server round", ends[0], "Median", ends[1]], [(x, *map(task.show, shares)) for x, *shares in found]),
    )


def ledger(run: Run) -> Table:
    """A row a round; what is alike in all is said once."""
    task = run.task
    header = ["Round", "Trained", "Clients", "Refused", task.headline, INTERVAL, TEST_EXAMPLES]
    header += ["Training loss", "Uploaded", "Downloaded", "Seconds"]
    rows: list[tuple[Cell, ...]] = [
        (
            record.server_round,
            " and ".join(record.trainable),
            len(record.clients),
            len(record.refused),
            task.show(record.metrics[task.primary]) if record.metrics else None,
            interval_text(task, interval(task, record.metrics)),
            record.metrics.get("num_examples"),
            f"{record.train_loss:.3f}",
            human_bytes(record.uploaded_bytes),
            human_bytes(record.downloaded_bytes),
            f"{sum(record.seconds.values()):.1f}",
        )
        for record in run.record.rounds
    ]
    return trimmed(table(header, rows), keep=(task.headline,))
