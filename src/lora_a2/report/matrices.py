"""Heat maps: selected ranks by module and layer, and clients beside each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from lora_a2.analysis.ranks import selected_ranks
from lora_a2.analysis.similarity import (
    SharingTest,
    mask_similarity,
    run_label_overlap,
    sharing_test,
    update_similarity,
)
from lora_a2.report import charts
from lora_a2.report.blocks import Figure, Section, table
from lora_a2.report.clients import MAX_CLIENTS
from lora_a2.report.inputs import Run


def ranks(run: Run) -> Section:
    """Which ranks were sent, by layer and module type."""
    mean = selected_ranks(run.record)
    if mean.stack().nunique() == 1:
        return Section(
            "Ranks",
            (f"Every client sent {float(mean.to_numpy()[0, 0]):g} rank slices of every module in every round.",),
        )
    numbers = [record.server_round for record in run.record.rounds]
    rows = _cells(mean, 0)
    for number in numbers:
        rows += _cells(selected_ranks(run.record, server_round=number), number)
    figure = Figure(
        "Ranks sent per module and layer",
        "Rank slices that a client sent, mean over the clients. The slider chooses a round; 0 is the mean of all.",
        charts.heat_map(
            rows,
            ("Layer", "Module", "Ranks sent"),
            value_format=".1f",
            numbers=mean.size <= 160,
            rounds=numbers[-1],
            step=34,
        ),
        table(
            ["Layer", *map(str, mean.columns)],
            [(str(i), *(f"{v:.2f}" for v in row)) for i, row in zip(mean.index, mean.to_numpy(), strict=True)],
        ),
    )
    return Section("Ranks", figures=(figure,))


def _cells(ranks: pd.DataFrame, server_round: int) -> list[dict[str, Any]]:
    return [
        {"x": str(layer), "y": str(kind), "value": round(float(value), 3), "round": server_round}
        for layer, row in zip(ranks.index.to_list(), ranks.to_numpy(np.float64), strict=True)
        for kind, value in zip(ranks.columns.to_list(), row, strict=True)
        if np.isfinite(value)
    ]


def similarity(run: Run) -> Section:
    """How alike the clients are in what they select and in how they move the weights."""
    kinds = (
        ("Selected ranks alike", "Jaccard similarity of the rank slices that two clients selected", mask_similarity),
        ("Updates alike", "Cosine of what two clients changed in the weights", update_similarity),
    )
    figures, said = [], []
    for title, text, measure in kinds:
        matrix = measure(run.record)
        if len(matrix) > 1:
            figures.append(_matrix(run, matrix, title, text))
            if run.record.clients:
                said.append(_tested(title, sharing_test(matrix, run_label_overlap(run.record))))
    missing = "This run did not record its clients' updates, or there is only one client."
    return Section("Similarity of clients", tuple(said) or (() if figures else (missing,)), figures=tuple(figures))


def _matrix(run: Run, matrix: pd.DataFrame, title: str, text: str) -> Figure:
    called = {client.id: client.name for client in run.record.clients}
    names = [called.get(client, str(client)) for client in matrix.index]
    values, size = matrix.to_numpy(np.float64), min(len(names), MAX_CLIENTS)
    pairs = [(i, j) for i in range(size) for j in range(size) if i != j and np.isfinite(values[i, j])]
    rows = [{"x": names[j], "y": names[i], "value": round(float(values[i, j]), 4)} for i, j in pairs]
    found = [float(values[pair]) for pair in pairs] or [0.0]
    domain = min(found), max(max(found), min(found) + 0.01)
    cut = f" The first {size} of {len(names)} clients." if size < len(names) else ""
    cells = [
        [name, *(None if i == j or np.isnan(v) else f"{v:.2f}" for j, v in enumerate(row))]
        for i, (name, row) in enumerate(zip(names, values, strict=True))
    ]
    return Figure(
        title,
        f"{text}, mean over the rounds in which both took part.{cut}",
        charts.heat_map(rows, ("Client", "Client", "Similarity"), value_format=".2f", domain=domain),
        table(["Client", *names], cells),
    )


def _tested(title: str, test: SharingTest | None) -> str:
    """What the permutation test says, in a sentence."""
    if test is None:
        return f"{title}: no test of whether clients that share labels are more alike is possible here."
    verdict = "more alike than chance" if test.p_value < 0.05 else "not shown to be more alike than chance"
    p = f"{test.p_value:.4f}" if test.p_value >= 0.0001 else "below 0.0001"
    return (
        f"{title}: clients that share labels are {verdict} (Mantel test over {test.num_clients} clients: correlation "
        f"{test.correlation:.2f} with the overlap of their labels, p = {p})."
    )
