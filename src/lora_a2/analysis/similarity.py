"""Clients beside each other: their selected rank slices, their updates, their labels (Figures 5 and 10 of the LoRA-A² paper).

All matrices are (K, K), symmetric, clients in ascending order of their id. NaN: a pair that never trained in the same round,
or one of which changed nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from lora_a2.analysis.record import FloatArray64, IntArray, RoundAnalysis, RunRecord
from lora_a2.core.types import BoolArray

RESAMPLES = 9_999


@dataclass(frozen=True)
class Pairs:
    """Clients beside each other.

    Attributes:
        mean: (K, K) similarity, mean over the rounds in which both were measured; NaN without any.
        rounds: (K, K) in how many that was.
    """

    mean: pd.DataFrame
    rounds: pd.DataFrame


def jaccard(sets: BoolArray) -> FloatArray64:
    """|i ∩ j| / |i ∪ j| for the K rows of `sets` (K, n); two empty sets are alike."""
    member = sets.astype(np.float64)
    common = member @ member.T
    sizes = member.sum(axis=1)
    union = sizes[:, None] + sizes[None, :] - common
    return np.asarray(np.divide(common, union, out=np.ones_like(common), where=union > 0), np.float64)


def mask_similarity(run: RunRecord, rounds: Iterable[int] | None = None) -> pd.DataFrame:
    """Jaccard similarity of the clients' selected rank slices, mean over `rounds` (None: all); empty without selection."""
    return mask_pairs(run, rounds).mean


def mask_pairs(run: RunRecord, rounds: Iterable[int] | None = None) -> Pairs:
    """`mask_similarity`, and in how many rounds each pair was measured."""

    def one(line: RoundAnalysis) -> tuple[Sequence[int], FloatArray64]:
        masks = line.selected(run.modules)
        return list(masks), jaccard(np.array([np.concatenate(list(mask.values())) for mask in masks.values()]))

    return _pairs([one(line) for line in _chosen(run, rounds) if line.masks])


def update_similarity(run: RunRecord, rounds: Iterable[int] | None = None) -> pd.DataFrame:
    """Cosine of the clients' changes of the effective weights, mean over `rounds` (None: all); empty if not recorded."""
    return update_pairs(run, rounds).mean


def update_pairs(run: RunRecord, rounds: Iterable[int] | None = None) -> Pairs:
    """`update_similarity`, and in how many rounds each pair was measured."""
    return _pairs([line.cosine_matrix() for line in _chosen(run, rounds) if line.norms])


def label_overlap(counts: IntArray) -> FloatArray64:
    """Σ_c min(p_ic, p_jc) for the rows of `counts` (K, C), p the shares of the classes: 1 for alike, 0 for nothing in common."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return np.asarray(np.minimum(shares[:, None, :], shares[None, :, :]).sum(axis=2), np.float64)


def run_label_overlap(run: RunRecord) -> pd.DataFrame:
    """`label_overlap` of the training examples of a run's clients."""
    ids = sorted(client.id for client in run.clients)
    return pd.DataFrame(label_overlap(run.label_counts), ids, ids)


def gradient_similarity(run: RunRecord) -> pd.Series:
    """Server round → average gradient similarity, the mean cosine over all pairs of clients (Figure 10: low is drift).

    A client's gradient is the change of its effective weights by local training in that round.
    """
    means = {}
    for line in run.analyses:
        values = [c for c in line.cosines if c is not None]
        means[line.server_round] = float(np.mean(values)) if values else float("nan")
    return pd.Series(means, name="gradient_similarity", dtype=np.float64).rename_axis("server_round")


@dataclass(frozen=True)
class SharingTest:
    """Are clients that share classes more alike than chance?

    Attributes:
        correlation: of similarity and label overlap over all pairs of clients.
        p_value: share of the permutations of the clients with at least this correlation.
        sharing: mean similarity of the pairs with a class in common; None if there are none.
        apart: likewise of those without.
        num_clients: K.
    """

    correlation: float
    p_value: float
    sharing: float | None
    apart: float | None
    num_clients: int


def sharing_test(similarity: pd.DataFrame, overlap: pd.DataFrame) -> SharingTest | None:
    """The Mantel test of `similarity` against `overlap`, one-sided; None if it cannot be made.

    Mantel: "The Detection of Disease Clustering and a Generalized Regression Approach", Cancer Research 1967. Pairs are
    not independent, clients are: so the labels of the clients are permuted, rows and columns together. Every permutation
    is taken where there are at most `RESAMPLES` of them. With overlaps of 0 and 1 only, as in the pathological split, the
    correlation orders the permutations as the difference of the two means does. There is no test with fewer than three
    clients, with a pair that has no similarity, or where all pairs are alike or overlap alike.
    """
    ids = list(similarity.index)
    values, labels = similarity.to_numpy(np.float64), overlap.loc[ids, ids].to_numpy(np.float64)
    upper = np.triu_indices(len(ids), 1)
    x, y = values[upper], labels[upper]
    if len(ids) < 3 or not np.isfinite(x).all() or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    x, y = x - x.mean(), y - y.mean()
    centred = labels - labels[upper].mean()
    norm = np.sqrt((x @ x) * (y @ y))

    def correlation(order: IntArray, axis: int = -1) -> FloatArray64:
        index = np.moveaxis(order, axis, -1).astype(np.int64)
        return np.asarray(centred[index[..., upper[0]], index[..., upper[1]]] @ x / norm)

    found = stats.permutation_test(
        (np.arange(len(ids)),),
        correlation,
        permutation_type="pairings",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=500,
        alternative="greater",
        rng=np.random.default_rng(0),
    )
    share = labels[upper] > 0
    return SharingTest(
        correlation=float(found.statistic),
        p_value=float(found.pvalue),
        sharing=float(values[upper][share].mean()) if share.any() else None,
        apart=float(values[upper][~share].mean()) if not share.all() else None,
        num_clients=len(ids),
    )


def _chosen(run: RunRecord, rounds: Iterable[int] | None) -> list[RoundAnalysis]:
    wanted = None if rounds is None else set(rounds)
    return [line for line in run.analyses if wanted is None or line.server_round in wanted]


def _pairs(parts: Sequence[tuple[Sequence[int], FloatArray64]]) -> Pairs:
    """The mean over the parts that a pair is in; a part is the ids of its clients and their matrix."""
    ids = sorted({client for clients, _ in parts for client in clients})
    total, seen = np.zeros((len(ids), len(ids))), np.zeros((len(ids), len(ids)), np.int64)
    for clients, matrix in parts:
        at = np.ix_(np.searchsorted(ids, clients), np.searchsorted(ids, clients))
        there = np.isfinite(matrix)
        total[at] += np.where(there, matrix, 0)
        seen[at] += there
    mean = np.divide(total, seen, out=np.full_like(total, np.nan), where=seen > 0)
    return Pairs(pd.DataFrame(mean, ids, ids), pd.DataFrame(seen, ids, ids))
