"""Adaptive rank selection: scores for every rank slice of the model, and the best of them. NumPy only.

LoRA-A², section 3 (see `methods/lora_a2.py`). Shapes: A (r, d_in), B (d_out, r), scores and masks (r,) a module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from lora_a2.types import Adapter, Factor, FloatArray, Mask

Scores = Mapping[str, FloatArray]
Criterion = Callable[[Adapter, Adapter, frozenset[Factor]], Scores]


def contribution(start: Adapter, probed: Adapter, trainable: frozenset[Factor]) -> Scores:
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


def select_top(criterion: Criterion) -> Callable[[Adapter, Adapter, frozenset[Factor], int], Mask]:
    """A method's `select`: the r_k·N best rank slices by `criterion`, where N is the number of modules."""

    def select(start: Adapter, probed: Adapter, trainable: frozenset[Factor], budget: int) -> Mask:
        return top_ranks(criterion(start, probed, trainable), budget * len(start.factors))

    return select
