"""Activation functions in bfloat16 on a CPU: tables of all 65,536 values and slopes, made by PyTorch's own function.

The forward pass gives PyTorch's results to the bit; the backward pass rounds once, as PyTorch's does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import activations

try:
    from lora_a2.engine.kernels import _table as kernel
except ImportError:  # built without a C compiler
    kernel = None  # type: ignore[assignment]

ELEMENTWISE = (
    nn.GELU,
    nn.SiLU,
    activations.GELUActivation,
    activations.NewGELUActivation,
    activations.SiLUActivation,
)
"""Modules without parameters or state that map every element alone."""


class TabulatedActivation(nn.Module):
    """Stands in for an element-wise activation; other dtypes and devices than its tables' go through the original."""

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.original = original
        x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).roll(2**15)
        wide = x.float().requires_grad_()
        (self._slopes,) = torch.autograd.grad(original(wide).sum(), wide)
        with torch.no_grad():
            self._values = original(x).contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """f(x), of the shape of x."""
        if x.dtype != torch.bfloat16 or x.device.type != "cpu":
            return self.original(x)  # type: ignore[no-any-return]
        found: Tensor = _Tabulated.apply(x, self._values, self._slopes)  # type: ignore[no-untyped-call]
        return found


class _Tabulated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, slopes: Tensor) -> Tensor:
        x = x.contiguous()
        out = torch.empty_like(x)
        kernel.look_up(x.data_ptr(), values.data_ptr(), out.data_ptr(), x.numel())
        ctx.save_for_backward(x)
        ctx.slopes = slopes
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        grad = grad.contiguous()
        out = torch.empty_like(grad)
        kernel.chain(x.data_ptr(), ctx.slopes.data_ptr(), grad.data_ptr(), out.data_ptr(), grad.numel())
        return out, None, None


def tabulate(backbone: nn.Module) -> None:
    """Puts tables in the places of a backbone's activation modules, where the compiled look-up is there."""
    if kernel is None:
        return
    tables: dict[str, TabulatedActivation] = {}
    for name, module in list(backbone.named_modules()):
        if isinstance(module, ELEMENTWISE):
            parent, _, child = name.rpartition(".")
            table = tables.setdefault(repr(module), TabulatedActivation(module))
            setattr(backbone.get_submodule(parent), child, table)
