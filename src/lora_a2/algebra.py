"""Exact maths on adapters. NumPy only.

Shapes: A (r, d_in), B (d_out, r), ΔW = scaling · B @ A (d_out, d_in).
"""

from __future__ import annotations

import numpy as np

from lora_a2.types import Adapter, Factor, Factors, FloatArray, Layout, Mask


def difference(end: Adapter, start: Adapter, trainable: frozenset[Factor], mask: Mask | None = None) -> Adapter:
    """`end − start` in the trained factors and the head, zero elsewhere and in rank slices that `mask` leaves out."""

    def moved(name: str, factor: Factor) -> FloatArray:
        old = start.factors[name].get(factor)
        if factor not in trainable:
            return np.zeros_like(old)
        change = end.factors[name].get(factor) - old
        if mask is not None:
            keep = mask[name]
            change = np.where(keep[:, None] if factor == "A" else keep, change, np.float32(0))
        return np.ascontiguousarray(change, np.float32)

    factors = {name: Factors(A=moved(name, "A"), B=moved(name, "B")) for name in start.factors}
    head = {name: end.head[name] - values for name, values in start.head.items()}
    return Adapter(factors, start.lora_alpha, head)


def add(start: Adapter, update: Adapter) -> Adapter:
    """`start + update`, factor by factor and for the head."""
    factors = {
        name: Factors(A=f.A + update.factors[name].A, B=f.B + update.factors[name].B)
        for name, f in start.factors.items()
    }
    return Adapter(factors, start.lora_alpha, {name: v + update.head[name] for name, v in start.head.items()})


def delta_weight(adapter: Adapter, name: str) -> FloatArray:
    """scaling · B @ A of one module, (d_out, d_in)."""
    f = adapter.factors[name]
    product: FloatArray = np.float32(adapter.scaling) * (f.B @ f.A)
    return product


def initial_adapter(
    layout: Layout, rank: int, lora_alpha: float, rng: np.random.Generator, head: dict[str, FloatArray] | None = None
) -> Adapter:
    """B = 0 and A Gaussian, the start of every run (paper: Setting).

    The paper leaves A's standard deviation open; 1/√(3·d_in) is the variance of PEFT's default start.
    Drawn in the layout's order from `rng`.
    """
    factors = {
        m.name: Factors(
            A=(rng.standard_normal((rank, m.d_in), np.float32) / np.float32(np.sqrt(3 * m.d_in))),
            B=np.zeros((m.d_out, rank), np.float32),
        )
        for m in layout.modules
    }
    return Adapter(factors, lora_alpha, head or {})
