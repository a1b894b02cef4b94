"""Everything that a run's record says, as plain values."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from lora_a2.analysis.convergence import client_scores, curve, discordance, rounds_to
from lora_a2.analysis.ranks import selected_ranks
from lora_a2.analysis.record import RunRecord
from lora_a2.analysis.similarity import (
    SharingTest,
    gradient_similarity,
    mask_similarity,
    run_label_overlap,
    sharing_test,
    update_similarity,
)
from lora_a2.errors import RunError

GOALS = (0.9, 0.95, 0.99)


def analyze(run: RunRecord) -> dict[str, Any]:
    """The statistics of a run, ready for `json.dumps`; None if the run did not record what it takes.

    Raises:
        RunError: no round is finished.
    """
    if not run.rounds:
        raise RunError(f"{run.path} has no finished round: continue it with 'lora-a2 resume {run.path}'.")
    table, lost, task = curve(run), discordance(run), run.task
    scores, ranks = table[task.primary], selected_ranks(run)
    return {
        "run": str(run.path),
        "method": run.method,
        "task": task.name,
        "server_rounds": len(run.rounds),
        task.primary: _last(scores),
        "rounds_to": {f"{goal:g}": rounds_to(scores, goal, task) for goal in GOALS},
        "clients": {
            "worst_tenth": _last(table["client_worst_tenth"]),
            "mean": _last(table["client_mean"]),
            "num_evaluated": len(client_scores(run)),
        },
        "selected_ranks": {str(layer): row.dropna().to_dict() for layer, row in ranks.iterrows()},
        "gradient_similarity": _by_round(gradient_similarity(run)),
        "discordance": _by_round(lost["discordance"]),
        "relative_discordance": _by_round(lost["relative"]),
        "masks": _sharing(run, mask_similarity(run)),
        "updates": _sharing(run, update_similarity(run)),
    }


def _sharing(run: RunRecord, similarity: pd.DataFrame) -> dict[str, Any] | None:
    """Mean similarity of two clients, and, where their labels are known, the test of whether those that share classes are
    more alike."""
    if similarity.empty:
        return None
    upper = similarity.to_numpy()[np.triu_indices(len(similarity), 1)]
    found: SharingTest | None = sharing_test(similarity, run_label_overlap(run)) if run.clients else None
    mean = float(np.nanmean(upper)) if np.isfinite(upper).any() else None
    return {"mean": mean, "test": None if found is None else asdict(found)}


def _last(values: pd.Series) -> float | None:
    known = values.dropna()
    return None if known.empty else float(known.iloc[-1])


def _by_round(values: pd.Series) -> dict[str, float] | None:
    known = values.dropna()
    return None if known.empty else {str(n): float(v) for n, v in known.items()}
