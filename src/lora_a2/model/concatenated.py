"""What a method taught that moves base weights, as one adapter, where that is exact and small."""

from __future__ import annotations

import numpy as np

from lora_a2.core.types import Adapter, BaseDelta, Factors, FloatArray, weight_name

EXACT = 1e-5
"""The norm that the adapter may lack of a change of weights, over that of the change."""
SMALL = 0.5
"""The share of the adapted weights' own number that the adapter's may reach."""


def concatenated(adapter: Adapter, base: BaseDelta) -> Adapter | None:
    """One adapter, of one rank, for `adapter` on base weights moved by `base`; None where it is not exact or not small.

    Its rank is the largest of any module's change of weights: over a few rounds of FLoRA that is the sum of the clients' ranks.
    """
    if base.keys() - {weight_name(name) for name in adapter.factors}:
        return None  # other weights have moved too
    pair = adapter.pair
    changes = {
        name: pair.scaling * (f.B @ f.A) + base.get(weight_name(name), np.float32(0))
        for name, f in pair.factors.items()
    }
    parts = {name: _factors(change) for name, change in changes.items()}
    rank = max(len(f.A) for f in parts.values())
    held = sum(rank * sum(change.shape) for change in changes.values())
    if held > SMALL * sum(change.size for change in changes.values()):
        return None
    return Adapter({name: _padded(f, rank) for name, f in parts.items()}, float(rank), pair.head)


def _factors(change: FloatArray) -> Factors:
    """B (d_out, r) and A (r, d_in) with B A = change (d_out, d_in) up to `EXACT`, of the least rank r ≥ 1."""
    u, s, vt = np.linalg.svd(change.astype(np.float64), full_matrices=False)
    left = np.sqrt(np.cumsum(s[::-1] ** 2)[::-1])  # the norm of what a rank leaves out
    rank = max(1, int(np.count_nonzero(left > EXACT * left[0])))
    root = np.sqrt(s[:rank])
    return Factors(A=(root[:, None] * vt[:rank]).astype(np.float32), B=(u[:, :rank] * root).astype(np.float32))


def _padded(f: Factors, rank: int) -> Factors:
    more = rank - len(f.A)
    return Factors(A=np.pad(f.A, ((0, more), (0, 0))), B=np.pad(f.B, ((0, 0), (0, more))))
