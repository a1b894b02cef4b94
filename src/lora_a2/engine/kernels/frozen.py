"""The products of a frozen weight: x Wᵀ + b and its gradient g W, with W laid out once as the CPU's matrix library wants it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

_ROWS_HINT = 512
"""Rows that the layout is prepared for; other numbers are right too."""


class Frozen(ABC):
    """A weight W (d_out, d_in) and a bias (d_out,) that get no gradient."""

    bias: Tensor | None

    @property
    @abstractmethod
    def weight(self) -> Tensor:
        """W."""

    def __call__(self, x: Tensor) -> Tensor:
        """As `product`, and differentiable in x."""
        found: Tensor = _Product.apply(x, self)  # type: ignore[no-untyped-call]
        return found

    @abstractmethod
    def product(self, x: Tensor) -> Tensor:
        """x (…, T, d_in) → x Wᵀ + b (…, T, d_out); no gradient passes."""

    @abstractmethod
    def gradient(self, grad: Tensor) -> Tensor:
        """g (…, T, d_out) → g W (…, T, d_in), the gradient of x."""


class FrozenWeight(Frozen):
    """A weight W (d_out, d_in) and a bias (d_out,) that get no gradient, both in the compute dtype.

    In bfloat16 on a CPU, oneDNN otherwise lays W out anew in every product.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = weight
        self.bias = bias
        self._prepared = weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and _can_prepare()
        self._forward: Tensor | None = None
        self._backward: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """As it was given."""
        return self._weight

    def product(self, x: Tensor) -> Tensor:
        """As of every frozen weight."""
        if not self._prepared:
            return torch.nn.functional.linear(x, self.weight, self.bias)
        if self._forward is None:
            self._forward = _prepare(self.weight)
        return _multiply(x, self._forward, self.bias)

    def gradient(self, grad: Tensor) -> Tensor:
        """As of every frozen weight."""
        if not self._prepared:
            return grad @ self.weight
        if self._backward is None:
            self._backward = _prepare(self.weight.t().contiguous())
        return _multiply(grad, self._backward, None)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, frozen: Frozen) -> Tensor:
        ctx.frozen = frozen
        return frozen.product(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.frozen.gradient(grad), None


def _can_prepare() -> bool:
    return hasattr(torch.ops.mkldnn, "_linear_pointwise") and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _prepare(weight: Tensor) -> Tensor:
    prepared: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS_HINT)
    return prepared


def _multiply(x: Tensor, prepared: Tensor, bias: Tensor | None) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x.contiguous(), prepared, bias, "none", [], "")
    return y
