"""Exact maths on adapters. NumPy only.

Shapes: A (r, d_in), B (d_out, r), ΔW = scaling · B @ A (d_out, d_in).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from lora_a2.core.tensors import Key
from lora_a2.core.types import Adapter, BoolArray, Factor, Factors, FloatArray, Layout, Mask, dense


def difference(end: Adapter, start: Adapter, shared: frozenset[Factor], mask: Mask | None = None) -> Adapter:
    """`end − start` in the shared factors and the head, zero elsewhere and in rank slices that `mask` leaves out."""
    old, new = start.tensors, end.tensors

    def moved(key: Key, values: FloatArray) -> FloatArray:
        kind, name = key
        if kind != "head" and kind not in shared:
            return np.zeros_like(values)
        change = new[key] - values
        if mask is not None and kind != "head":
            change = np.where(rows(mask[name], kind), change, np.float32(0))
        return np.ascontiguousarray(change, np.float32)

    return start.with_tensors({key: moved(key, values) for key, values in old.items()})


def rows(keep: BoolArray, kind: str) -> BoolArray:
    """Which rank slices (r,), in a shape that goes with the factor's: (r, 1), or (1, r) for B."""
    return keep[None, :] if kind == "B" else keep[:, None]


def add(start: Adapter, update: Adapter) -> Adapter:
    """`start + update`, factor by factor and for the head."""
    return start.with_tensors(start.tensors + update.tensors)


def delta_weight(adapter: Adapter, name: str) -> FloatArray:
    """scaling · B @ A (or B @ R @ A) of one module, (d_out, d_in)."""
    f = adapter.factors[name].pair
    product: FloatArray = np.float32(adapter.scaling) * (f.B @ f.A)
    return product


def initial_adapter(
    layout: Layout,
    rank: int,
    lora_alpha: float,
    rng: np.random.Generator,
    head: Mapping[str, FloatArray] | None = None,
    core: bool = False,
) -> Adapter:
    """B = 0 and A Gaussian, the start of every run (paper: Setting); a core R, if there is one, is zero too.

    The paper leaves A's standard deviation open; 1/√(3·d_in) is the variance of PEFT's default start.
    Drawn in the layout's order from `rng`.
    """
    factors = {
        m.name: Factors(
            A=_gaussian((rank, m.d_in), rng),
            B=np.zeros((m.d_out, rank), np.float32),
            R=np.zeros((rank, rank), np.float32) if core else None,
        )
        for m in layout.modules
    }
    return Adapter(factors, lora_alpha, dict(head or {}))


def truncate(adapter: Adapter, rank: int) -> Adapter:
    """The first `rank` rank slices, at the same scaling: lora_alpha shrinks with the rank."""
    if rank == adapter.rank:
        return adapter
    factors = {
        name: Factors(
            A=f.A[:rank], B=np.ascontiguousarray(f.B[:, :rank]), R=None if f.R is None else f.R[:rank, :rank].copy()
        )
        for name, f in adapter.factors.items()
    }
    return replace(adapter, factors=factors, lora_alpha=adapter.scaling * rank)


def restarted(adapter: Adapter, rng: np.random.Generator) -> Adapter:
    """An adapter of the same shapes as at the start of a run, B = 0 and A drawn anew; the head stays."""
    factors = {name: Factors(A=_gaussian(f.A.shape, rng), B=np.zeros_like(f.B)) for name, f in adapter.factors.items()}
    return replace(adapter, factors=factors)


def _gaussian(shape: tuple[int, ...], rng: np.random.Generator) -> FloatArray:
    rows: FloatArray = rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(3 * shape[1]))
    return rows


def nearest_rotation(overlap: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """The rotation R (r, r), det = 1, that maximises ⟨R, overlap⟩ (Kabsch, 1976); in float64."""
    u, _, vt = np.linalg.svd(overlap.astype(np.float64))
    u[:, -1] *= np.sign(np.linalg.det(u @ vt))
    return np.asarray(u @ vt)


def turned(factors: Factors, rotation: npt.NDArray[np.float64]) -> Factors:
    """Rᵀ A and B R: the same product."""
    return Factors(A=(rotation.T @ factors.A).astype(np.float32), B=(factors.B @ rotation).astype(np.float32))


def turned_back(adapter: Adapter, start: Adapter) -> Adapter:
    """An adapter turned as near to `start` as rotations bring it, the same products: what else moved it is left."""
    factors = {}
    for name, f in adapter.factors.items():
        old = start.factors[name]
        factors[name] = turned(f, nearest_rotation(f.A @ old.A.T + f.B.T @ old.B))
    return replace(adapter, factors=factors)


def stacked(parts: Sequence[tuple[float, Factors]]) -> Factors:
    """Factors of rank Σ r_k whose product is Σ_k c_k · B_k @ A_k, for pairs (c_k, factors)."""
    return Factors(
        A=np.concatenate([f.A for _, f in parts]), B=np.concatenate([np.float32(c) * f.B for c, f in parts], axis=1)
    )


def factored_svd(product: Factors) -> tuple[FloatArray, FloatArray, FloatArray]:
    """U (d_out, R), singular values (R,) and Vᵀ (R, d_in) of B @ A, without forming it; R = min(rank, d_out, d_in).

    With B = Q_B R_B and Aᵀ = Q_A R_A, B A = Q_B (R_B R_Aᵀ) Q_Aᵀ: the SVD of the small core gives that of the product.
    Both sides have orthonormal columns and rows also where singular values are zero. Computed in float64, so that
    neither large nor nearly equal singular values of the whole product can keep it from converging.
    """
    qb, rb = np.linalg.qr(product.B.astype(np.float64))
    qa, ra = np.linalg.qr(product.A.T.astype(np.float64))
    u, values, vt = np.linalg.svd(rb @ ra.T, full_matrices=False)
    return (qb @ u).astype(np.float32), values.astype(np.float32), (vt @ qa.T).astype(np.float32)


def smaller(change: Factors) -> FloatArray | Factors:
    """The form of a change that has fewer values: its factors, or their product."""
    rank, (d_out, d_in) = change.rank, (change.B.shape[0], change.A.shape[1])
    return change if rank * (d_out + d_in) < d_out * d_in else dense(change)
