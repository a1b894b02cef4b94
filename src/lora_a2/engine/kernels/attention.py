"""Attention over packed sentences, behind Transformers' attention interface: every sentence alone, no padding in the model.

On a CPU a compiled kernel (`_attention.c`) goes through the packed rows; elsewhere, and if it was not built, sentences of
similar length are gathered into rectangles and multiplied by PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lora_a2.engine.packing import EVERYWHERE, HeadIndex, PackedBatch, Sight, put_back
from lora_a2.errors import ModelError

try:
    from lora_a2.engine.kernels import _attention as kernel
except ImportError:  # built without a C compiler
    kernel = None  # type: ignore[assignment]
if kernel is not None and getattr(kernel, "INTERFACE", 1) != 2:
    raise ImportError("the compiled parts of lora-a2 are of another version than its Python: install it again")

ATTENTION = "lora_a2_packed"
KERNEL_WIDTH = 16
"""The compiled kernel takes heads whose width is a multiple of this."""
WITHOUT_EFFECT = frozenset(
    {"position_ids", "cache_position", "use_cache", "deterministic", "output_hidden_states", "return_dict"}
)
"""Keywords that models pass on to their attention and that change nothing there: positions are in queries and keys already,
packed batches have no cache, and the rest is about what a model returns, or about flash attention's rounding."""


@dataclass(frozen=True)
class Rule:
    """How scores become probabilities: softmax(cap(scaling · q kᵀ + bias)) over what a token sees.

    Attributes:
        scaling: of the scores.
        sight: which tokens of its sentence a token sees.
        softcap: cap(s) = softcap · tanh(s / softcap), as in Gemma 2; None: cap(s) = s.
    """

    scaling: float
    sight: Sight = EVERYWHERE
    softcap: float | None = None


def compiled() -> bool:
    """Whether the compiled kernel is there."""
    return kernel is not None


class _PackedAttention(torch.autograd.Function):
    """A `Rule` for every sentence alone, on packed rows; q, k, v (K·T, h, d), bias None or (h, L, L), L ≥ the longest.

    Written out, forward and backward, so that padding lives only in the small score matrices, and so that each gather's
    gradient is another gather rather than a scatter. Padded queries read a filler row, whose gradient is zero.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, heads: HeadIndex, rule: Rule) -> Tensor:
        width = q.shape[-1]
        rows = [t.reshape(-1, width) for t in (q, k, v)]
        saved: list[Tensor] = []
        outputs = []
        for index, hidden in zip(heads.index, heads.bias, strict=True):
            gq, gk, gv = (t.index_select(0, index).view(len(hidden), -1, width) for t in rows)
            scores, slope = _scores(gq, gk, hidden, bias, rule)
            probs = torch.softmax(scores, -1).to(q.dtype)
            outputs.append(torch.bmm(probs, gv).view(-1, width))
            saved += [gq, gk, gv, probs, slope]
        ctx.save_for_backward(*saved)
        ctx.heads, ctx.rule, ctx.bias = heads, rule, bias
        return put_back(torch.cat(outputs), heads.back, heads.filler).view(q.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows = grad.reshape(-1, grad.shape[-1])
        parts: tuple[list[Tensor], ...] = ([], [], [])
        bias = torch.zeros_like(ctx.bias) if ctx.needs_input_grad[3] else None
        saved = ctx.saved_tensors  # read once: a checkpoint gives them out once
        for i, index in enumerate(ctx.heads.index):
            gq, gk, gv, probs, slope = saved[5 * i : 5 * i + 5]
            g = rows.index_select(0, index).view(gq.shape)
            gp = torch.bmm(g, gv.transpose(1, 2))
            scores = torch._softmax_backward_data(gp, probs, -1, probs.dtype)
            if ctx.rule.softcap is not None:
                scores = (scores * slope).to(probs.dtype)
            if bias is not None:
                n, longest = len(scores) // len(bias), scores.shape[-1]
                bias[:, :longest, :longest] += scores.view(len(bias), n, longest, longest).sum(1)
            scores.mul_(ctx.rule.scaling)
            found = (torch.bmm(scores, gk), torch.bmm(scores.transpose(1, 2), gq), torch.bmm(probs.transpose(1, 2), g))
            for part, value in zip(parts, found, strict=True):
                part.append(value.view(-1, grad.shape[-1]))
        dq, dk, dv = (put_back(torch.cat(p), ctx.heads.back, ctx.heads.filler).view(grad.shape) for p in parts)
        return dq, dk, dv, bias, None, None


def _scores(q: Tensor, k: Tensor, hidden: Tensor, bias: Tensor | None, rule: Rule) -> tuple[Tensor, Tensor]:
    """Scores (h·N, L, L), −inf where a token does not look, and the cap's derivative there (empty without a cap)."""
    if bias is None and rule.softcap is None:
        return torch.baddbmm(hidden, q, k.transpose(1, 2), alpha=rule.scaling), q.new_empty(0)
    scores = (
        torch.bmm(q, k.transpose(1, 2)).float().mul_(rule.scaling)
    )  # in bfloat16 a cap of 50 has steps of a quarter
    if bias is not None:
        longest = scores.shape[-1]
        scores.view(len(bias), -1, longest, longest).add_(bias[:, None, :longest, :longest])
    slope = q.new_empty(0)
    if rule.softcap is not None:
        tangent = torch.tanh(scores / rule.softcap)
        scores, slope = rule.softcap * tangent, 1 - tangent * tangent
    return scores + hidden, slope


def _rows(t: Tensor) -> tuple[int, int, int]:
    """Where the kernel finds the rows and heads of a (T, h, d) tensor."""
    return t.data_ptr(), t.stride(0), t.stride(1)


class _CompiledAttention(torch.autograd.Function):
    """`_PackedAttention` by the compiled kernel, straight on the packed rows; filler rows of results are zero.

    `bias` gets no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, batch: PackedBatch, rule: Rule
    ) -> Tensor:
        q, k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v))
        tokens, heads, width = q.shape
        if bias is not None:
            bias = bias.float().contiguous()
        shape = (
            batch.starts.ctypes.data, batch.lengths.ctypes.data, len(batch.starts), heads, width, rule.scaling,
            q.dtype == torch.bfloat16, rule.sight.left, rule.sight.right, rule.softcap or 0.0,
            0 if bias is None else bias.data_ptr(), 0 if bias is None else bias.shape[-1],
        )  # fmt: skip
        out = q.new_empty(tokens, heads, width).index_fill_(0, batch.filler, 0)
        sums = torch.empty(tokens, heads)
        kernel.forward(shape, _rows(q), _rows(k), _rows(v), _rows(out), sums.data_ptr())
        ctx.save_for_backward(q, k, v, sums)
        ctx.shape, ctx.batch, ctx.bias = shape, batch, bias  # the shape holds the bias's address
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, sums = ctx.saved_tensors
        grad = grad.contiguous()
        dq, dk, dv = grad.new_empty(3, *grad.shape).index_fill_(1, ctx.batch.filler, 0)
        given, found = (_rows(q), _rows(k), _rows(v), _rows(grad)), (_rows(dq), _rows(dk), _rows(dv))
        kernel.backward(ctx.shape, *given, *found, sums.data_ptr())
        return dq, dk, dv, None, None, None


def _kernel_takes(q: Tensor, bias: Tensor | None) -> bool:
    known = q.dtype in (torch.float32, torch.bfloat16)
    fixed = bias is None or not bias.requires_grad
    return kernel is not None and q.device.type == "cpu" and known and q.shape[-1] % KERNEL_WIDTH == 0 and fixed


def attend(q: Tensor, k: Tensor, v: Tensor, packed: PackedBatch, rule: Rule, bias: Tensor | None = None) -> Tensor:
    """Attention in every sentence alone: q (1, h, K·T, d), k and v (1, h_kv, K·T, d) → (1, K·T, h, d); filler rows are zero.

    `bias` (h, L, L), L at least the longest sentence's length, is added to the scores of tokens i and j of each sentence.

    Raises:
        ModelError: these are not the packed rows, or keys and values are not as wide as queries.
    """
    rows, width = packed.input_ids.numel(), q.shape[-1]
    if any(t.shape[0] != 1 or t.shape[2:] != (rows, width) for t in (q, k, v)):
        shapes = ", ".join(str(tuple(t.shape)) for t in (q, k, v))
        raise ModelError(f"its attention is over {shapes}; expected {rows} packed rows, all equally wide")
    q, k, v = (t[0].transpose(0, 1) for t in (q, k, v))
    repeats = q.shape[1] // k.shape[1]
    if repeats > 1:
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    if _kernel_takes(q, bias):
        output: Tensor = _CompiledAttention.apply(q, k, v, bias, packed, rule)  # type: ignore[no-untyped-call]
    else:
        bias = None if bias is None else bias.to(q.dtype)
        index = packed.heads(q.shape[1], rule.sight, q.dtype)
        output = _PackedAttention.apply(q, k, v, bias, index, rule)  # type: ignore[no-untyped-call]
    return output[None]


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    *,
    packed: PackedBatch,
    **asked: Any,
) -> tuple[Tensor, None]:
    """Transformers' attention interface for packed input: q (1, h, K·T, d), k and v (1, h_kv, K·T, d) → (1, K·T, h, d).

    Of what a model may ask for besides, `is_causal`, `sliding_window` and `softcap` are known. `sliding_window` means what it
    means to Transformers' flash attention, which gets no mask either: a token sees this many tokens, itself among them, to
    either side; where attention is causal, to the left.

    Raises:
        ModelError: the model asks for attention that is not this one: between other things than the packed rows, by a mask
            of its own, or with anything else that could change the result.
    """
    if attention_mask is not None:
        raise ModelError("it makes an attention mask of its own")
    is_causal, window, softcap = (asked.pop(name, None) for name in ("is_causal", "sliding_window", "softcap"))
    for name, given in asked.items():
        if name not in WITHOUT_EFFECT and not _neutral(given):
            raise ModelError(f"its attention takes {name!r}, which packed attention does not know")
    causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    rule = Rule(float(scale), Sight.within(window, causal), softcap or None)
    return attend(query, key, value, packed, rule), None


def _neutral(given: object) -> bool:
    """None, False, 0 and 0.0 ask for nothing."""
    return given is None or (isinstance(given, bool | int | float) and not given)
