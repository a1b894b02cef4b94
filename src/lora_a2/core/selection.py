"""Adaptive rank selection: scores for every rank slice of the model, and the best of them. NumPy only.

LoRA-A², section 3 (see `methods/lora_a2.py`). Shapes: A (r, d_in), B (d_out, r), scores and masks (r,) a module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from lora_a2.core.types import Adapter, Factor, FloatArray, Mask

Scores = Mapping[str, FloatArray]
Criterion = Callable[[Adapter, Adapter, frozenset[Factor], np.random.Generator], Scores]


def contribution(start: Adapter, probed: Adapter, trainable: frozenset[Factor], rng: np.random.Generator) -> Scores:
    """‖ΔB[:,i] · A[i,:]‖_F where B is trained, ‖B[:,i] · ΔA[i,:]‖_F where A is: the contribution criterion.

    An outer product's Frobenius norm is the product of the two vectors' norms. With both factors trained the two
    parts are combined as the norm of the first-order change, √(a² + b²).
    """
    scores = {}
    for name, old in start.factors.items():
        new = probed.factors[name]
        square = np.zeros(old.rank, np.float64)
        if "B" in trainable:
            square += _norms(new.B.T - old.B.T) ** 2 * _norms(old.A) ** 2
        if "A" in trainable:
            square += _norms(old.B.T) ** 2 * _norms(new.A - old.A) ** 2
        scores[name] = np.sqrt(square).astype(np.float32)
    return scores


def magnitude(start: Adapter, probed: Adapter, trainable: frozenset[Factor], rng: np.random.Generator) -> Scores:
    """‖ΔB[:,i]‖ or ‖ΔA[i,:]‖ (paper, Table 9): how far the slice moved, whatever it is multiplied with."""
    return _summed(start, probed, trainable, lambda old, new: np.sum((new - old) ** 2, axis=1), root=True)


def sensitivity(start: Adapter, probed: Adapter, trainable: frozenset[Factor], rng: np.random.Generator) -> Scores:
    """Σ |θ · Δθ| over the slice, θ after the probe: SNIP's |θ · ∂L/∂θ| with the probe's change for the gradient.

    Lee, Ajanthan, Torr: "SNIP: Single-shot Network Pruning based on Connection Sensitivity", ICLR 2019. The paper gives
    no formula for its Table 9; θ before the probe would score nothing in round 1, where B is zero.
    """
    return _summed(start, probed, trainable, lambda old, new: np.sum(np.abs(new * (new - old)), axis=1))


def at_random(start: Adapter, probed: Adapter, trainable: frozenset[Factor], rng: np.random.Generator) -> Scores:
    """Uniform scores: what selection without a criterion gives."""
    return {name: rng.random(f.rank, np.float32) for name, f in start.factors.items()}


CRITERIA: Mapping[str, Criterion] = {
    "contribution": contribution,
    "magnitude": magnitude,
    "sensitivity": sensitivity,
    "random": at_random,
}


def _summed(
    start: Adapter,
    probed: Adapter,
    trainable: frozenset[Factor],
    score: Callable[[FloatArray, FloatArray], FloatArray],
    root: bool = False,
) -> Scores:
    """Per slice the sum of `score` over the trained factors, or its square root."""
    scores = {}
    for name, old in start.factors.items():
        parts = [score(old.slices(x), probed.factors[name].slices(x)) for x in sorted(trainable)]
        total = np.sum(parts, axis=0)
        scores[name] = (np.sqrt(total) if root else total).astype(np.float32)
    return scores


def _norms(rows: FloatArray) -> FloatArray:
    norms: FloatArray = np.linalg.norm(rows.astype(np.float64), axis=1)
    return norms


def top_ranks(scores: Scores, count: int) -> Mask:
    """The `count` best rank slices of the whole model; ties go to the earlier module and the lower index.

    Returns module → bool (r,); a module may get none.
    """
    flat = np.concatenate(list(scores.values()))
    best = np.argsort(-flat, kind="stable")[:count]
    chosen = np.zeros(flat.shape, bool)
    chosen[best] = True
    ends = np.cumsum([s.size for s in scores.values()])
    return dict(zip(scores, np.split(chosen, ends[:-1]), strict=True))


def select_top(
    criterion: Criterion,
) -> Callable[[Adapter, Adapter, frozenset[Factor], int, np.random.Generator], Mask]:
    """A method's `select`: the r_k·N best rank slices by `criterion`, where N is the number of modules."""

    def select(
        start: Adapter, probed: Adapter, trainable: frozenset[Factor], budget: int, rng: np.random.Generator
    ) -> Mask:
        return top_ranks(criterion(start, probed, trainable, rng), budget * len(start.factors))

    return select


def top_entries(adapter: Adapter, density: float) -> Adapter:
    """The ⌈density · n⌉ entries of largest magnitude among all n of A and B; the rest zero. The head stays whole."""
    parts = adapter.tensors.of(*adapter.kinds)
    sizes = np.concatenate([np.abs(v).ravel() for v in parts.values()])
    count = int(np.ceil(density * sizes.size))
    keep = np.zeros(sizes.size, bool)
    keep[np.argpartition(-sizes, count - 1)[:count]] = True
    ends = np.cumsum([v.size for v in parts.values()])[:-1]
    kept = {
        key: np.where(rows.reshape(v.shape), v, np.float32(0))
        for (key, v), rows in zip(parts.items(), np.split(keep, ends), strict=True)
    }
    return adapter.with_tensors(kept)
