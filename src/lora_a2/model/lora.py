"""The cohort LoRA layer: one frozen weight for all clients' tokens, one small A, B pair for each client.

Shapes: K clients, T tokens a client, R rank slices held in a module (the most of any client; others are filled with
zeros, which stay zero), A (K, R, d_in), Bᵀ (K, R, d_out), x (K·T, d_in). Rank slices are rows in both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True)
class Slot:
    """What a module adds to its frozen weight for K clients: scaling_k · B_k A_k, in the compute dtype.

    Attributes:
        A: (K, R, d_in), Bt: (K, R, d_out); a tensor that requires grad is trained.
        scaling: (K, 1, 1) in the compute dtype.
    """

    A: Tensor
    Bt: Tensor
    scaling: Tensor


class _LoraProducts(torch.autograd.Function):
    """y_p = x W_pᵀ + b_p + s (x A_pᵀ) B_pᵀ for all parts p that read the same x; the base product is one GEMM.

    The gradient of W does not exist; those of A and B are computed only where asked for.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, widths: Sequence[int], slots: Any, *ab: Tensor | None
    ) -> Tensor:
        y = torch.nn.functional.linear(x, weight, bias)
        saved: list[Tensor | None] = [x if any(ctx.needs_input_grad[5::2]) else None, weight]
        start = 0
        for width, slot, a, b in zip(widths, slots, ab[::2], ab[1::2], strict=True):
            z = None
            if a is not None and b is not None:
                clients = a.shape[0]
                z = torch.bmm(x.view(clients, -1, x.shape[1]), a.transpose(1, 2)).mul_(slot.scaling)
                part = y[:, start : start + width].view(clients, -1, width) if clients == 1 else None
                if part is not None:
                    part[0].addmm_(z[0], b[0])
                else:
                    y[:, start : start + width] += torch.bmm(z, b).view(-1, width)
            saved += [a, b, z]
            start += width
        ctx.save_for_backward(*saved)
        ctx.widths, ctx.slots = widths, slots
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *saved = ctx.saved_tensors
        needs_x = ctx.needs_input_grad[0]
        dx = grad @ weight if needs_x else None
        grads: list[Tensor | None] = []
        start = 0
        for i, (width, slot) in enumerate(zip(ctx.widths, ctx.slots, strict=True)):
            a, b, z = saved[3 * i : 3 * i + 3]
            da = db = None
            if a is not None:
                clients = a.shape[0]
                g = grad[:, start : start + width].reshape(clients, -1, width)
                if ctx.needs_input_grad[6 + 2 * i]:
                    db = torch.bmm(z.transpose(1, 2), g)
                if needs_x or ctx.needs_input_grad[5 + 2 * i]:
                    gz = torch.bmm(g, b.transpose(1, 2)).mul_(slot.scaling)
                    if ctx.needs_input_grad[5 + 2 * i]:
                        da = torch.bmm(gz.transpose(1, 2), x.view(clients, -1, x.shape[1]))
                    if dx is not None:
                        dx.view(clients, -1, dx.shape[1]).baddbmm_(gz, a)
            grads += [da, db]
            start += width
        return dx, None, None, None, None, *grads


class LoraLinear(nn.Module):
    """Takes the place of a target linear layer.

    `weight` (d_out, d_in) is the layer's own, in the compute dtype, with whatever the round has merged into it;
    `slot` is what the K clients of the moment add. Layers that read the same input (query, key, value) share one
    `LinearGroup`, whose first caller computes the products of all.
    """

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.conv1d = isinstance(linear, Conv1D)
        weight, bias = cast(Tensor, linear.weight), cast("Tensor | None", linear.bias)
        base = weight.t() if self.conv1d else weight
        self.base = nn.Parameter(base.detach().contiguous(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.slot: Slot | None = None
        self.group = LinearGroup([self])

    @property
    def d_out(self) -> int:
        """Width of the output."""
        return int(self.base.shape[0])

    @property
    def d_in(self) -> int:
        """Width of the input."""
        return int(self.base.shape[1])

    def forward(self, x: Tensor) -> Tensor:
        """x (…, K·T, d_in) → (…, K·T, d_out)."""
        return self.group.output(self, x)


class LinearGroup:
    """Linear layers that read the same tensor: one base GEMM over their stacked weights."""

    def __init__(self, members: Sequence[LoraLinear]) -> None:
        self.members = tuple(members)
        self._input: Tensor | None = None
        self._outputs: dict[int, Tensor] = {}
        self._weight: Tensor | None = None
        self._bias: Tensor | None = None
        self._rows: list[Tensor] = []

    def load(self, deltas: Sequence[Tensor | None], dtype: torch.dtype) -> None:
        """Sets the frozen weights to base + delta (d_out, d_in; None: zero), stacked, in `dtype`."""
        parts = [
            m.base if d is None else m.base + d.to(m.base.dtype) for m, d in zip(self.members, deltas, strict=True)
        ]
        self._weight = torch.cat([p.to(dtype) for p in parts]) if len(parts) > 1 else parts[0].to(dtype)
        if all(m.bias is None for m in self.members):
            self._bias = None
        else:
            self._bias = torch.cat([m.base.new_zeros(m.d_out) if m.bias is None else m.bias for m in self.members]).to(
                dtype
            )

    def output(self, member: LoraLinear, x: Tensor) -> Tensor:
        """The output of `member` for x; the members' outputs for one x are computed together and handed out once."""
        if x is not self._input:
            self._input, self._outputs = x, self._compute(x)
        out = self._outputs.pop(id(member))
        if not self._outputs:
            self._input = None
        return out

    def _compute(self, x: Tensor) -> dict[int, Tensor]:
        assert self._weight is not None, "weights are loaded before the first forward pass"
        slots = [m.slot for m in self.members]
        widths = [m.d_out for m in self.members]
        if not any(slots):
            y = torch.nn.functional.linear(x, self._weight, self._bias)
        else:
            ab = [t for s in slots for t in ((None, None) if s is None else (s.A, s.Bt))]
            flat: Tensor = _LoraProducts.apply(  # type: ignore[no-untyped-call]
                x.reshape(-1, x.shape[-1]), self._weight, self._bias, widths, slots, *ab
            )
            y = flat.view(*x.shape[:-1], -1)
        outputs = torch.split(y, widths, -1) if len(widths) > 1 else (y,)
        return {id(m): out for m, out in zip(self.members, outputs, strict=True)}


def install(backbone: nn.Module, names: Sequence[str]) -> dict[str, LoraLinear]:
    """Puts a `LoraLinear` in the place of each named module; returns them by name, in the given order."""
    layers = {}
    for name in names:
        parent = backbone.get_submodule(name.rpartition(".")[0])
        layers[name] = LoraLinear(backbone.get_submodule(name))
        setattr(parent, name.rpartition(".")[2], layers[name])
    return layers


def share_inputs(layers: dict[str, LoraLinear], forward: Callable[[], object]) -> list[LinearGroup]:
    """Finds, in one forward pass, the layers that read the same tensor and makes each such set one group."""
    readers: dict[int, list[LoraLinear]] = {}
    inputs: list[Tensor] = []  # kept, so that no id is used twice

    def note(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        inputs.append(args[0])
        assert isinstance(layer, LoraLinear)
        readers.setdefault(id(args[0]), []).append(layer)

    handles = [layer.register_forward_pre_hook(note) for layer in layers.values()]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    groups = [LinearGroup(members) for members in readers.values()]
    for group in groups:
        for member in group.members:
            member.group = group
    return groups
