"""Frozen weights of 4 bits: NF4 with doubly quantised scales, as in QLoRA (Dettmers et al. 2023, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lora_a2.engine.kernels.frozen import Frozen
from lora_a2.errors import ModelError
from lora_a2.system.invocation import installer

Pair = tuple[Tensor, Tensor]
"""What is merged into a weight, as a product: (d_out, r) and (r, d_in)."""


class Packed:
    """A weight (d_out, d_in) as bitsandbytes packs it: half a byte a value, and a scale for every 64 of them.

    Raises:
        ModelError: bitsandbytes is not installed.
    """

    def __init__(self, weight: Tensor) -> None:
        self._shape = tuple(weight.shape)
        self._values, self._state = _functional().quantize_4bit(
            weight.contiguous(), quant_type="nf4", compress_statistics=True
        )

    def dense(self, dtype: torch.dtype) -> Tensor:
        """(d_out, d_in), unpacked."""
        unpacked: Tensor = _functional().dequantize_4bit(self._values, self._state)
        return unpacked.reshape(self._shape).to(dtype)  # bitsandbytes takes a weight of two values for a transposed one


class PackedWeight(Frozen):
    """The products of packed weights that read the same input, stacked, with what is merged into each beside it.

    W is unpacked for every product, and is not kept.
    """

    def __init__(
        self, parts: Sequence[Packed], merged: Sequence[Pair | None], bias: Tensor | None, dtype: torch.dtype
    ) -> None:
        self._parts = tuple(parts)
        self._merged = tuple(None if pair is None else (pair[0].to(dtype), pair[1].to(dtype)) for pair in merged)
        self._dtype = dtype
        self.bias = bias

    @property
    def weight(self) -> Tensor:
        """(Σ d_out, d_in), with what is merged into it."""
        found = [part.dense(self._dtype) for part in self._parts]
        return torch.cat([w if m is None else w + m[0] @ m[1] for w, m in zip(found, self._merged, strict=True)])

    def product(self, x: Tensor) -> Tensor:
        """x (…, T, d_in) → x Wᵀ + b (…, T, Σ d_out)."""
        found = []
        for part, merged in zip(self._parts, self._merged, strict=True):
            y = x @ part.dense(self._dtype).t()
            found.append(y if merged is None else y + (x @ merged[1].t()) @ merged[0].t())
        whole = torch.cat(found, -1) if len(found) > 1 else found[0]
        return whole if self.bias is None else whole + self.bias

    def gradient(self, grad: Tensor) -> Tensor:
        """g (…, T, Σ d_out) → g W (…, T, d_in)."""
        weights = [part.dense(self._dtype) for part in self._parts]
        parts = torch.split_with_sizes(grad, [w.shape[0] for w in weights], -1)
        found = [
            g @ w if merged is None else g @ w + (g @ merged[0]) @ merged[1]
            for g, w, merged in zip(parts, weights, self._merged, strict=True)
        ]
        return torch.stack(found).sum(0) if len(found) > 1 else found[0]


def _functional() -> Any:
    try:
        import bitsandbytes.functional as functional
    except ImportError as error:
        raise ModelError(f"load-in-4bit: bitsandbytes is not installed; run: {installer('quantized')}") from error
    return functional
