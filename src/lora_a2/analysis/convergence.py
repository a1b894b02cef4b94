"""Accuracy by round and by byte, rounds to a goal, discordance, and the Pareto front of several runs."""

from __future__ import annotations

import numpy as np
import pandas as pd

from lora_a2.analysis.record import FloatArray64, RunRecord
from lora_a2.core.types import BoolArray


def curve(run: RunRecord) -> pd.DataFrame:
    """Server round → train_loss, accuracy, macro_f1, client_mean, client_worst_tenth (NaN in rounds without evaluation),
    and what had been uploaded and downloaded by then: uploaded_bytes, uploaded_parameters, downloaded_bytes."""
    metrics = ("accuracy", "macro_f1", "client_mean", "client_worst_tenth")
    traffic = ("uploaded_bytes", "uploaded_parameters", "downloaded_bytes")
    rows = [
        {
            "server_round": record.server_round,
            "train_loss": record.train_loss,
            **{name: record.metrics.get(name) for name in metrics},
            "uploaded_bytes": record.uploaded_bytes,
            "uploaded_parameters": record.uploaded_parameters,
            "downloaded_bytes": record.downloaded_bytes,
        }
        for record in run.rounds
    ]
    table = pd.DataFrame(rows, columns=["server_round", "train_loss", *metrics, *traffic]).set_index("server_round")
    table[list(traffic)] = table[list(traffic)].cumsum()
    return table.astype(dict.fromkeys(("train_loss", *metrics), np.float64))


def client_accuracies(run: RunRecord) -> pd.Series:
    """Client name → accuracy of the global model on its own test examples, at the last evaluation; worst first."""
    evaluated = [record.metrics["per_client"] for record in run.rounds if record.metrics.get("per_client")]
    return pd.Series(evaluated[-1] if evaluated else {}, name="accuracy", dtype=np.float64).sort_values(kind="stable")


def rounds_to(table: pd.DataFrame, goal: float) -> int | None:
    """The first round of a `curve` with at least `goal` of its best accuracy (0..1); None if there is no accuracy."""
    accuracy = table["accuracy"].dropna()
    if accuracy.empty:
        return None
    reached = accuracy[accuracy >= goal * accuracy.max()]
    return int(reached.index[0])


def discordance(run: RunRecord) -> pd.DataFrame:
    """Server round → discordance, change (both norms, see `RoundAnalysis`) and relative, their ratio.

    Discordance is ‖Σ w_k s_k B_k A_k − W‖ with W the effective weights that the server made of them: what averaging the
    factors, cutting ranks or rounding lost. It is 0, up to rounding, for an exact method. NaN if it is not recorded.
    """
    rows = [(line.server_round, line.discordance, line.change) for line in run.analyses]
    table = pd.DataFrame(rows, columns=["server_round", "discordance", "change"]).set_index("server_round")
    table = table.astype(np.float64)
    table["relative"] = table["discordance"] / table["change"].where(table["change"] > 0)
    return table


def pareto_front(cost: FloatArray64, gain: FloatArray64) -> BoolArray:
    """Which of n points are on the front: no other has at most its `cost` and at least its `gain`, and one of them better.

    For bytes uploaded against accuracy. Equal points are on it together.
    """
    order = np.lexsort((-gain, cost))
    front = np.zeros(len(cost), np.bool_)
    best, cost_of_best = -np.inf, np.nan
    for i in order:
        if gain[i] > best or (gain[i] == best and cost[i] == cost_of_best):
            front[i] = True
            best, cost_of_best = gain[i], cost[i]
    return front
