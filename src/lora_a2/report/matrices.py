"""Heat maps: selected ranks by module and layer, and clients beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from lora_a2.analysis.ranks import selected_ranks
from lora_a2.analysis.record import IntArray
from lora_a2.analysis.similarity import (
    Pairs,
    SharingTest,
    mask_pairs,
    run_label_overlap,
    sharing_test,
    update_pairs,
)
from lora_a2.report.blocks import Figure, Section, table
from lora_a2.report.clients import MAX_CLIENTS
from lora_a2.report.heat import Grid, heat_map
from lora_a2.report.inputs import Run

LEAST_MEASURED = 0.5
"""Share of the pairs of clients: below it a picture of them is mostly holes."""
LEAST_RANGE = 0.1
"""Of the scale of similarities: what differs by less looks alike."""


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
        heat_map(
            Grid([*map(str, mean.index)], [*map(str, mean.columns)], rows, ("Layer", "Module", "Ranks sent"), ".1f"),
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
    """How alike the clients are in what they select and in how they move the weights: a picture where most pairs were measured."""
    kinds = (
        ("Selected ranks alike", "Jaccard similarity of the rank slices that two clients selected", mask_pairs),
        ("Updates alike", "Cosine of what two clients changed in the weights", update_pairs),
    )
    figures, said = [], []
    for title, text, measure in kinds:
        pairs = measure(run.record)
        size = len(pairs.mean)
        if size < 2:
            continue
        counts = pairs.rounds.to_numpy()[np.triu_indices(size, 1)]
        known = int((counts > 0).sum())
        if known < LEAST_MEASURED * len(counts):
            said.append(
                f"{title}: no picture, since only {known:,} of {len(counts):,} pairs of clients ever took part in the same round."
            )
            continue
        figures.append(_matrix(run, pairs, title, text))
        if run.record.clients:
            said.append(_tested(title, sharing_test(pairs.mean, run_label_overlap(run.record))))
    missing = "This run did not record its clients' updates, or there is only one client."
    return Section("Similarity of clients", tuple(said) or (() if figures else (missing,)), figures=tuple(figures))


def _matrix(run: Run, pairs: Pairs, title: str, text: str) -> Figure:
    """Clients in one order across and down; only pairs that were measured have a cell."""
    called = {client.id: client.name for client in run.record.clients}
    size = min(len(pairs.mean), MAX_CLIENTS)
    names = [called.get(client, str(client)) for client in pairs.mean.index[:size]]
    values, counts = pairs.mean.to_numpy(np.float64)[:size, :size], pairs.rounds.to_numpy()[:size, :size]
    there = [(i, j) for i in range(size) for j in range(size) if i != j and counts[i, j] and np.isfinite(values[i, j])]
    cells = [
        {"x": names[j], "y": names[i], "value": round(float(values[i, j]), 4), "rounds": int(counts[i, j])}
        for i, j in there
    ]
    titles = ("Client", "Client", "Similarity")
    grid = Grid(names, names, cells, titles, ".2f", notes=(("rounds", "Rounds together"),))
    numbers = [
        [name, *(f"{v:.2f}" if (i, j) in set(there) else None for j, v in enumerate(row))]
        for i, (name, row) in enumerate(zip(names, values, strict=True))
    ]
    found = [float(values[pair]) for pair in there]
    cut = f" The first {size} of {len(pairs.mean)} clients." if size < len(pairs.mean) else ""
    said = f"{text}, mean over the rounds in which both took part.{_measured(there, counts, size)}{_range(found)}{cut}"
    return Figure(title, said, heat_map(grid, domain=_domain(found)), table(["Client", *names], numbers))


def _domain(found: Sequence[float]) -> tuple[float, float]:
    """The ends of the colours: from 0, as bars begin there, so that what is nearly alike looks nearly alike."""
    low, high = min(0.0, *found), max(0.0, *found)
    return low, max(high, low + LEAST_RANGE)


def _range(found: Sequence[float]) -> str:
    low, high = min(found), max(found)
    narrow = high - low < LEAST_RANGE
    return f" {'All are nearly alike' if narrow else 'They go'}, from {low:.2f} to {high:.2f}; colours begin at 0."


def _measured(there: Sequence[tuple[int, int]], counts: IntArray, size: int) -> str:
    """In how many rounds the pairs were measured, and which were not, if it is not the same for all."""
    seen = [int(counts[pair]) for pair in there]
    missing = size * (size - 1) // 2 - len(seen) // 2
    if not missing and min(seen) == max(seen):
        return ""
    blank = f" Blank: {missing:,} pairs that were never measured together." if missing else ""
    return f" A pair was measured in {min(seen)} to {max(seen)} rounds.{blank}"


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
