"""The cohort LoRA layer: one frozen weight for all clients' tokens, one small A, B pair for each client.

Shapes: K clients, T tokens a client, R rank slices held in a module (the most of any client; others are filled with
zeros, which stay zero), A (K, R, d_in), Bᵀ (K, R, d_out), x (K·T, d_in). Rank slices are rows in both.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lora_a2.engine.kernels.frozen import Frozen, FrozenWeight
from lora_a2.engine.kernels.packed import Packed, PackedWeight, Pair
from lora_a2.engine.kernels.skinny import down, outer, up
from lora_a2.errors import ModelError


@dataclass(frozen=True)
class Slot:
    """What a module adds to its frozen weight for K clients: B_k A_k, in the compute dtype.

    Attributes:
        A: (K, R, d_in), Bt: (K, R, d_out), which holds the scaling.
        dA, dBt: float32 of the same shapes; a backward pass adds the gradient to them. None: not trained.
    """

    A: Tensor
    Bt: Tensor
    dA: Tensor | None = None
    dBt: Tensor | None = None


@dataclass(frozen=True)
class Merged:
    """What is merged into a layer's frozen weights: scaling · B A, and a change of its pre-trained weights; None: nothing."""

    pair: Pair | None = None
    scaling: float = 1.0
    moved: Tensor | None = None

    def into(self, base: Tensor) -> Tensor:
        """base (d_out, d_in) with both; formed in float32."""
        delta = None if self.pair is None else (self.pair[0] @ self.pair[1]).mul_(self.scaling)
        if self.moved is not None:
            delta = self.moved if delta is None else delta + self.moved
        return base if delta is None else base + delta.to(base.dtype)


_ANCHOR = torch.zeros((), requires_grad=True)
"""Makes autograd visit the lowest trained module, whose input needs no gradient; slots take their gradients themselves."""


class _LoraProducts(torch.autograd.Function):
    """y_p = x W_pᵀ + b_p + (x A_pᵀ) B_pᵀ for the parts p of an output whose layers read the same x.

    Products with x are taken for all parts together. The gradient of W does not exist; those of A and B go to their slots.
    `spans` holds the columns of y that each slot's part takes.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, anchor: Tensor, frozen: Frozen, spans: Sequence[slice], slots: Sequence[Slot]
    ) -> Tensor:
        y = frozen.product(x)
        stacked = torch.cat([s.A for s in slots], 1) if len(slots) > 1 else slots[0].A
        z = down(x, stacked)
        for span, slot, part in zip(spans, slots, _split(z, slots), strict=True):
            up(y[:, span], part, slot.Bt)
        ctx.save_for_backward(x if any(s.dA is not None for s in slots) else None, z, stacked)
        ctx.frozen, ctx.spans, ctx.slots = frozen, spans, slots
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, z, stacked = ctx.saved_tensors
        parts = [grad[:, span] for span in ctx.spans]
        for slot, g, part in zip(ctx.slots, parts, _split(z, ctx.slots), strict=True):
            if slot.dBt is not None:
                outer(slot.dBt, part, g)
        dx = ctx.frozen.gradient(grad) if ctx.needs_input_grad[0] else None
        if dx is not None or x is not None:
            gzs = [down(g, slot.Bt) for slot, g in zip(ctx.slots, parts, strict=True)]
            for slot, gz in zip(ctx.slots, gzs, strict=True):
                if slot.dA is not None:
                    outer(slot.dA, gz, x)
            if dx is not None:
                up(dx, torch.cat(gzs, 2) if len(gzs) > 1 else gzs[0], stacked)
        return dx, None, None, None, None


def _split(z: Tensor, slots: Sequence[Slot]) -> list[Tensor]:
    """(K, T, ΣR) → a (K, T, R) for each slot."""
    return list(z.split_with_sizes([s.A.shape[1] for s in slots], 2))


class LoraLinear(nn.Module):
    """Takes the place of a target linear layer.

    `weight` (d_out, d_in) is the layer's own, in the compute dtype, with whatever the round has merged into it;
    `slot` is what the K clients of the moment add. Layers that read the same input (query, key, value) share one
    `LinearGroup`, whose first caller computes the products of all.
    """

    def __init__(self, linear: nn.Module, in_4bit: bool = False) -> None:
        super().__init__()
        self.conv1d = isinstance(linear, Conv1D)
        weight, bias = cast(Tensor, linear.weight), cast("Tensor | None", linear.bias)
        own = (weight.t() if self.conv1d else weight).detach().contiguous()
        self._shape = tuple(own.shape)
        self.packed = Packed(own) if in_4bit else None
        self.base = None if in_4bit else nn.Parameter(own, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.slot: Slot | None = None
        self.group = LinearGroup([self])
        self.weight_reads = 0

    @property
    def pretrained(self) -> Tensor:
        """The pre-trained weights (d_out, d_in), a parameter; or packed ones, unpacked, in float32."""
        if self.packed is not None:
            return self.packed.dense(torch.float32)
        assert self.base is not None, "weights are packed or not"
        return self.base

    @property
    def d_out(self) -> int:
        """Width of the output."""
        return int(self._shape[0])

    @property
    def d_in(self) -> int:
        """Width of the input."""
        return int(self._shape[1])

    @property
    def weight(self) -> Tensor:
        """What the layer in whose place this is would have there: the weights with all that is merged into them, in the compute
        dtype; (d_in, d_out) for GPT-2's layers. Models look at its dtype; one that computes with it is found by `weight_reads`.
        """
        self.weight_reads += 1
        weight = self.group.weight(self)
        return weight.t() if self.conv1d else weight

    @property
    def in_features(self) -> int:
        """As `nn.Linear` names d_in."""
        return self.d_in

    @property
    def out_features(self) -> int:
        """As `nn.Linear` names d_out."""
        return self.d_out

    @property
    def nf(self) -> int:
        """As GPT-2's `Conv1D` names d_out."""
        return self.d_out

    def forward(self, x: Tensor) -> Tensor:
        """x (…, K·T, d_in) → (…, K·T, d_out), which may be changed in place."""
        return self.group.output(self, x)


class LinearGroup:
    """Linear layers that read the same tensor: one base GEMM over their stacked weights."""

    def __init__(self, members: Sequence[LoraLinear]) -> None:
        self.members = tuple(members)
        self._input: Tensor | None = None
        self._outputs: dict[int, Tensor] = {}
        self._frozen: Frozen | None = None
        self._plain: Frozen | None = None

    def load(self, merged: Sequence[Merged], dtype: torch.dtype) -> None:
        """Sets the frozen weights to the base with what is merged into each member's, stacked, in `dtype`."""
        if any(found.pair is not None or found.moved is not None for found in merged):
            self._frozen = self._stacked(merged, dtype)
            return
        if self._plain is None:
            self._plain = self._stacked(merged, dtype)
        self._frozen = self._plain

    def _stacked(self, merged: Sequence[Merged], dtype: torch.dtype) -> Frozen:
        bias = None
        if any(m.bias is not None for m in self.members):
            device = next(m.bias.device for m in self.members if m.bias is not None)
            bias = torch.cat([torch.zeros(m.d_out, device=device) if m.bias is None else m.bias for m in self.members])
            bias = bias.to(dtype)
        packed = [m.packed for m in self.members if m.packed is not None]
        if packed:
            beside = [None if m.pair is None else (m.pair[0] * m.scaling, m.pair[1]) for m in merged]
            return PackedWeight(packed, beside, bias, dtype)
        parts = [found.into(m.pretrained).to(dtype) for m, found in zip(self.members, merged, strict=True)]
        return FrozenWeight(torch.cat(parts) if len(parts) > 1 else parts[0], bias)

    def weight(self, member: LoraLinear) -> Tensor:
        """A member's frozen weights (d_out, d_in) as they are loaded."""
        if self._frozen is None:
            return member.pretrained
        start = sum(m.d_out for m in self.members[: self.members.index(member)])
        return self._frozen.weight[start : start + member.d_out]

    def output(self, member: LoraLinear, x: Tensor) -> Tensor:
        """The output of `member` for x; the members' outputs for one x are computed together and handed out once."""
        if x is not self._input:
            self._input, self._outputs = x, self._compute(x)
        out = self._outputs.pop(id(member))
        if not self._outputs:
            self._input = None
        return out

    def _compute(self, x: Tensor) -> dict[int, Tensor]:
        assert self._frozen is not None, "weights are loaded before the first forward pass"
        widths = [m.d_out for m in self.members]
        ends = itertools.accumulate(widths)
        held = [(slice(end - m.d_out, end), m.slot) for m, end in zip(self.members, ends, strict=True) if m.slot]
        if not held:
            y = self._frozen(x)
        else:
            spans, slots = zip(*held, strict=True)
            flat: Tensor = _LoraProducts.apply(  # type: ignore[no-untyped-call]
                x.reshape(-1, x.shape[-1]), _ANCHOR, self._frozen, spans, slots
            )
            y = flat.view(*x.shape[:-1], -1)
        # Not views, to autograd: models change outputs in place, and these share no memory with each other.
        outputs = torch.unsafe_split_with_sizes(y, widths, -1) if len(widths) > 1 else (y,)
        return {id(m): out for m, out in zip(self.members, outputs, strict=True)}


def install(backbone: nn.Module, names: Sequence[str], in_4bit: bool = False) -> dict[str, LoraLinear]:
    """Puts a `LoraLinear` in the place of each named module; returns them by name, in the given order.

    Raises:
        ModelError: weights are to be held in 4 bits, and what packs them is not installed.
    """
    layers = {}
    for name in names:
        parent = backbone.get_submodule(name.rpartition(".")[0])
        layers[name] = LoraLinear(backbone.get_submodule(name), in_4bit)
        setattr(parent, name.rpartition(".")[2], layers[name])
    return layers


def share_inputs(layers: dict[str, LoraLinear], forward: Callable[[], object]) -> list[LinearGroup]:
    """Finds, in one forward pass, the layers that read the same tensors in turn and makes each such set one group.

    Raises:
        ModelError: the model computes with a layer's weights itself, so that what is added beside them would have no effect.
    """
    read: dict[LoraLinear, list[int]] = {}
    inputs: list[Tensor] = []  # kept, so that no id is used twice

    def note(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        inputs.append(args[0])
        assert isinstance(layer, LoraLinear)
        read.setdefault(layer, []).append(id(args[0]))

    handles = [layer.register_forward_pre_hook(note) for layer in layers.values()]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    _refuse_bypassed(
        {name: layer for name, layer in layers.items() if layer not in read and layer.weight_reads}, layers
    )
    readers: dict[tuple[int, ...], list[LoraLinear]] = {}
    for layer in layers.values():
        readers.setdefault(tuple(read.get(layer, [id(layer)])), []).append(layer)
    groups = [LinearGroup(members) for members in readers.values()]
    for group in groups:
        for member in group.members:
            member.group = group
    return groups


def _refuse_bypassed(bypassed: dict[str, LoraLinear], layers: dict[str, LoraLinear]) -> None:
    if not bypassed:
        return
    ends = {name.rpartition(".")[2] for name in bypassed}
    others = ",".join(dict.fromkeys(name.rpartition(".")[2] for name in layers if name.rpartition(".")[2] not in ends))
    raise ModelError(
        f"The model computes with the weights of {', '.join(sorted(ends))} itself instead of calling the layer, so that an adapter "
        f"there would have no effect: leave it out" + (f" with --target-modules {others}." if others else ".")
    )
