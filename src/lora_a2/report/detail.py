"""The sections of one run."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lora_a2.analysis.convergence import client_accuracies, discordance
from lora_a2.analysis.similarity import gradient_similarity
from lora_a2.progress import human_bytes, percent
from lora_a2.report import charts
from lora_a2.report.blocks import Cell, Figure, Section, table
from lora_a2.report.clients import labels
from lora_a2.report.inputs import Run
from lora_a2.report.matrices import ranks, similarity

MAX_BARS = 40
"""Clients with a bar each; of more the distribution is drawn."""


def detail(run: Run) -> list[Section]:
    """All that a run's record says, in the order of the page; what it lacks is left out, with a sentence."""
    parts: tuple[Callable[[Run], Section | None], ...] = (
        rounds,
        clients,
        labels,
        ranks,
        similarity,
        averaging,
        privacy,
        configuration,
    )
    return [section for part in parts if (section := part(run)) is not None]


def rounds(run: Run) -> Section:
    """Accuracy and its spread over clients, and the training loss, by round."""
    curve = run.curve
    shown = {"accuracy": "all examples", "client_mean": "clients' mean", "client_worst_tenth": "worst tenth of clients"}
    points = [
        {"series": text, "x": int(number), "y": float(row[name])}
        for name, text in shown.items()
        for number, row in curve.iterrows()
        if np.isfinite(row[name])
    ]
    losses = [{"series": "loss", "x": int(number), "y": float(row["train_loss"])} for number, row in curve.iterrows()]
    figures = [_evaluated(points)] if points else []
    figures.append(
        Figure(
            "Training loss per round",
            "Mean of the clients' losses while they trained, weighted by their number of examples.",
            charts.lines(losses, "Loss", y_format=".3~f"),
            table(["Server round", "Loss"], [(p["x"], f"{p['y']:.4f}") for p in losses]),
        )
    )
    return Section("Rounds", figures=tuple(figures), tables=(("Every round", _ledger(run)),))


def _evaluated(points: list[dict[str, Any]]) -> Figure:
    return Figure(
        "Accuracy per round",
        "Test accuracy of the global model: of all examples together, the mean over the clients, and of the tenth of the "
        "clients where it is worst.",
        charts.lines(points, "Accuracy", y_format=".0%"),
        table(["Series", "Server round", "Accuracy"], [(p["series"], p["x"], percent(p["y"])) for p in points]),
    )


def _ledger(run: Run) -> Any:
    header = ["Round", "Trained", "Clients", "Refused", "Accuracy", "Loss", "Uploaded", "Downloaded", "Seconds"]
    rows: list[tuple[Cell, ...]] = [
        (
            line["server_round"],
            " and ".join(line["trainable"]),
            len(line["clients"]),
            len(line["refused"]),
            percent(line["metrics"]["accuracy"]) if line["metrics"] else None,
            f"{line['train_loss']:.3f}",
            human_bytes(line["uploaded_bytes"]),
            human_bytes(line["downloaded_bytes"]),
            f"{sum(line['seconds'].values()):.1f}",
        )
        for line in run.record.rounds
    ]
    return table(header, rows)


def clients(run: Run) -> Section:
    """Each client's accuracy at the last evaluation, and how far they lie apart from round to round."""
    accuracies = client_accuracies(run.record)
    if accuracies.empty:
        return Section("Clients", ("No client has test examples of its own, or no round was evaluated yet.",))
    rows = [{"name": str(name), "value": float(value)} for name, value in accuracies.items()]
    mean = float(accuracies.mean())
    few = len(rows) <= MAX_BARS
    text = f"Accuracy of the global model on each client's own test examples, {'worst first; the dashed line is their mean' if few else 'how many clients reach how much'}."
    spec = charts.bars(rows, "Accuracy", rule=mean) if few else charts.histogram(rows, "Accuracy")
    each = Figure(
        "Accuracy per client",
        text,
        spec,
        table(["Client", "Accuracy"], [(r["name"], percent(r["value"])) for r in rows]),
    )
    said = f"{len(rows)} clients: mean {percent(mean)}, standard deviation {percent(float(accuracies.std(ddof=0)))}, from {percent(rows[0]['value'])} to {percent(rows[-1]['value'])}."
    return Section("Clients", (said,), figures=(each, _spread(run)))


def _spread(run: Run) -> Figure:
    rows = []
    for line in run.record.rounds:
        if values := list(line["metrics"].get("per_client", {}).values()):
            low, mid, high = (float(v) for v in np.quantile(values, (0.1, 0.5, 0.9)))
            rows.append({"x": line["server_round"], "low": low, "mid": mid, "high": high})
    return Figure(
        "Spread over clients per round",
        "The median client's accuracy, in the band that holds the middle eight tenths of the clients.",
        charts.band(rows, "Accuracy"),
        table(
            ["Server round", "Lowest tenth below", "Median", "Highest tenth above"],
            [(r["x"], percent(r["low"]), percent(r["mid"]), percent(r["high"])) for r in rows],
        ),
    )


def averaging(run: Run) -> Section:
    """What averaging lost, and how far the clients drift apart."""
    lost, alike = discordance(run.record)["relative"].dropna(), gradient_similarity(run.record).dropna()
    figures = []
    if not lost.empty:
        points = [(int(number), float(value)) for number, value in lost.items()]
        figures.append(
            Figure(
                "Discordance per round",
                "How far the server's new weights lie from the mean of the clients' weights, over how far they moved: what "
                "averaging the factors apart, or cutting ranks, lost. 0 is exact, up to rounding.",
                charts.lines(
                    [{"series": "d", "x": x, "y": y} for x, y in points], "Relative discordance", y_format=".3~g"
                ),
                table(["Server round", "Relative discordance"], [(x, f"{y:.3g}") for x, y in points]),
            )
        )
    if not alike.empty:
        points = [(int(number), float(value)) for number, value in alike.items()]
        figures.append(
            Figure(
                "Similarity of the clients' updates per round",
                "Mean cosine over all pairs of clients. Low is drift: clients pull in different directions.",
                charts.lines([{"series": "c", "x": x, "y": y} for x, y in points], "Mean cosine", y_format=".2~f"),
                table(["Server round", "Mean cosine"], [(x, f"{y:.3f}") for x, y in points]),
            )
        )
    missing = "This run did not record what averaging lost, or its server does not see the clients' whole weights."
    return Section("Averaging and drift", () if figures else (missing,), figures=tuple(figures))


def privacy(run: Run) -> Section | None:
    """The privacy spent, where rounds record an `epsilon`; no section where none does."""
    spent = [
        (line["server_round"], float(line["epsilon"])) for line in run.record.rounds if line.get("epsilon") is not None
    ]
    if not spent:
        return None
    delta = run.record.config.get("delta")
    at = "" if delta is None else f" at δ = {delta:g}"
    figure = Figure(
        "Privacy spent",
        f"ε after each round{at}.",
        charts.lines([{"series": "ε", "x": x, "y": y} for x, y in spent], "ε", y_format=".3~f"),
        table(["Server round", "ε"], [(x, f"{y:.3f}") for x, y in spent]),
    )
    return Section("Privacy", (f"ε = {spent[-1][1]:.3f}{at} after {spent[-1][0]} rounds.",), figures=(figure,))


def configuration(run: Run) -> Section:
    """The configuration, the environment, and the command that runs it again."""
    path = run.record.path
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
