"""A run's metrics by round and by byte, rounds to a goal, discordance, and the Pareto front of several runs."""

from __future__ import annotations

import numpy as np
import pandas as pd

from lora_a2.analysis.record import FloatArray64, RunRecord
from lora_a2.core.types import BoolArray
from lora_a2.tasks.base import Task


def curve(run: RunRecord) -> pd.DataFrame:
    """Server round → train_loss, the metrics of the run's task (accuracy and macro_f1; perplexity, loss, token_accuracy, and
    those of texts if some were written), client_mean, client_worst_tenth (NaN in rounds without evaluation), and what had been uploaded and downloaded by then:
    uploaded_bytes, uploaded_parameters, downloaded_bytes."""
    metrics = (*run.task.columns(record.metrics for record in run.rounds), "client_mean", "client_worst_tenth")
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


def client_scores(run: RunRecord) -> pd.Series:
    """Client name → the primary metric of the global model on its own test examples, at the last evaluation; worst first."""
    evaluated = [record.metrics["per_client"] for record in run.rounds if record.metrics.get("per_client")]
    found = pd.Series(evaluated[-1] if evaluated else {}, name=run.task.primary, dtype=np.float64)
    return found.sort_values(kind="stable", ascending=run.task.higher_is_better)


def rounds_to(scores: pd.Series, share: float, task: Task) -> int | None:
    """The first round in which the task's primary metric is at least a share (0..1) as good as in the best round, see
    `Task.reaches`; None if none was evaluated. `scores`: server round → the metric, NaN in rounds without evaluation."""
    known = scores.dropna()
    if known.empty:
        return None
    values = list(map(float, known))
    best = min(values, key=task.worse)
    reached = (task.reaches(value, share, best) for value in values)
    return next(number for number, far in zip(map(int, known.index.to_list()), reached, strict=True) if far)


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

    For bytes uploaded against a metric, its sign changed if it should be small. Equal points are on it together.
    """
    order = np.lexsort((-gain, cost))
    front = np.zeros(len(cost), np.bool_)
    best, cost_of_best = -np.inf, np.nan
    for i in order:
        if gain[i] > best or (gain[i] == best and cost[i] == cost_of_best):
            front[i] = True
            best, cost_of_best = gain[i], cost[i]
    return front
