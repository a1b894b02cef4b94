"""Attention over packed sentences, behind Transformers' attention interface: every sentence alone, no padding in the model.

On a CPU a compiled kernel (`_attention.c`) goes through the packed rows; elsewhere, and where it was not built, sentences of
similar length are gathered into rectangles and multiplied by PyTorch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lora_a2.model.packing import HeadIndex, PackedBatch, put_back

try:
    from lora_a2.model import _attention as kernel
except ImportError:  # built without a C compiler
    kernel = None  # type: ignore[assignment]

ATTENTION = "lora_a2_packed"
KERNEL_WIDTH = 16
"""The compiled kernel takes heads whose width is a multiple of this."""


def compiled() -> bool:
    """Whether the compiled kernel is there."""
    return kernel is not None


class _PackedAttention(torch.autograd.Function):
    """softmax(q kᵀ · scaling) v for every sentence alone, on packed rows; q, k, v (K·T, h, d).

    Written out, forward and backward, so that padding lives only in the small score matrices, and so that each gather's
    gradient is another gather rather than a scatter. Padded queries read a filler row, whose gradient is zero.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, heads: HeadIndex, scaling: float) -> Tensor:
        width = q.shape[-1]
        rows = [t.reshape(-1, width) for t in (q, k, v)]
        saved: list[Tensor] = []
        outputs = []
        for index, bias in zip(heads.index, heads.bias, strict=True):
            gq, gk, gv = (t.index_select(0, index).view(len(bias), -1, width) for t in rows)
            probs = torch.softmax(torch.baddbmm(bias, gq, gk.transpose(1, 2), alpha=scaling), -1)
            outputs.append(torch.bmm(probs, gv).view(-1, width))
            saved += [gq, gk, gv, probs]
        ctx.save_for_backward(*saved)
        ctx.heads, ctx.scaling = heads, scaling
        return put_back(torch.cat(outputs), heads.back, heads.filler).view(q.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows = grad.reshape(-1, grad.shape[-1])
        parts: tuple[list[Tensor], ...] = ([], [], [])
        for i, index in enumerate(ctx.heads.index):
            gq, gk, gv, probs = ctx.saved_tensors[4 * i : 4 * i + 4]
            g = rows.index_select(0, index).view(gq.shape)
            gp = torch.bmm(g, gv.transpose(1, 2))
            scores = torch._softmax_backward_data(gp, probs, -1, probs.dtype).mul_(ctx.scaling)
            found = (torch.bmm(scores, gk), torch.bmm(scores.transpose(1, 2), gq), torch.bmm(probs.transpose(1, 2), g))
            for part, value in zip(parts, found, strict=True):
                part.append(value.view(-1, grad.shape[-1]))
        dq, dk, dv = (put_back(torch.cat(p), ctx.heads.back, ctx.heads.filler).view(grad.shape) for p in parts)
        return dq, dk, dv, None, None


def _rows(t: Tensor) -> tuple[int, int, int]:
    """Where the kernel finds the rows and heads of a (T, h, d) tensor."""
    return t.data_ptr(), t.stride(0), t.stride(1)


class _CompiledAttention(torch.autograd.Function):
    """`_PackedAttention` by the compiled kernel, straight on the packed rows; filler rows of results are zero."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, batch: PackedBatch, scaling: float, causal: bool) -> Tensor:
        q, k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v))
        tokens, heads, width = q.shape
        shape = (
            batch.starts.ctypes.data, batch.lengths.ctypes.data, len(batch.starts), heads, width, scaling,
            q.dtype == torch.bfloat16, causal,
        )  # fmt: skip
        out = q.new_empty(tokens, heads, width).index_fill_(0, batch.filler, 0)
        sums = torch.empty(tokens, heads)
        kernel.forward(shape, _rows(q), _rows(k), _rows(v), _rows(out), sums.data_ptr())
        ctx.save_for_backward(q, k, v, sums)
        ctx.shape, ctx.batch = shape, batch
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, sums = ctx.saved_tensors
        grad = grad.contiguous()
        dq, dk, dv = grad.new_empty(3, *grad.shape).index_fill_(1, ctx.batch.filler, 0)
        given, found = (_rows(q), _rows(k), _rows(v), _rows(grad)), (_rows(dq), _rows(dk), _rows(dv))
        kernel.backward(ctx.shape, *given, *found, sums.data_ptr())
        return dq, dk, dv, None, None, None


def _kernel_takes(q: Tensor) -> bool:
    known = q.dtype in (torch.float32, torch.bfloat16)
    return kernel is not None and q.device.type == "cpu" and known and q.shape[-1] % KERNEL_WIDTH == 0


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    packed: PackedBatch,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Transformers' attention interface for packed input: q (1, h, K·T, d), k and v (1, h_kv, K·T, d) → (1, K·T, h, d).

    Raises:
        ValueError: the model asks for attention between other things than the packed rows.
    """
    rows = packed.input_ids.numel()
    if any(t.shape[0] != 1 or t.shape[2] != rows for t in (query, key, value)):
        raise ValueError(f"Attention over {tuple(query.shape)} and {tuple(key.shape)}; expected {rows} packed rows.")
    q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))
    repeats = q.shape[1] // k.shape[1]
    if repeats > 1:
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if _kernel_takes(q):
        output: Tensor = _CompiledAttention.apply(q, k, v, packed, scale, causal)  # type: ignore[no-untyped-call]
    else:
        index = packed.heads(q.shape[1], causal, q.dtype)
        output = _PackedAttention.apply(q, k, v, index, scale)  # type: ignore[no-untyped-call]
    return output[None], None
