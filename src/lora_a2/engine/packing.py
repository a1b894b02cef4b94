"""Packed batches: sentences lie end to end, without padding, and attention sees each one alone.

Shapes: K clients, T tokens a client (the longest of the cohort; shorter clients are padded), N sentences, L the
longest sentence of a group, h heads, d a head's width. Rows of a batch are numbered 0 … K·T − 1, client by client.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lora_a2.engine.transfer import CPU, to_device

Pooling = Literal["mean", "cls", "last"]
ROWS_MULTIPLE = 16
"""Rows of a client are padded to a multiple of this: matrix libraries prepare a kernel for each new shape, which costs
more than a small product itself, so that few different shapes must do."""


NO_LIMIT = 2**31 - 1


@dataclass(frozen=True)
class Sight:
    """Which tokens of its sentence a token sees: this many before and this many after itself."""

    left: int = NO_LIMIT
    right: int = NO_LIMIT

    @classmethod
    def within(cls, window: int | None, causal: bool) -> Sight:
        """Of a window of this many tokens to either side, the token itself counted (None: no window); causal: to the left."""
        side = window - 1 if window else NO_LIMIT
        return cls(side, 0 if causal else side)


EVERYWHERE = Sight()


@dataclass(frozen=True)
class Positions:
    """How a model numbers a sentence's tokens.

    Attributes:
        start: the first token's number.
        padding_idx: as RoBERTa does it, only other tokens than this one are counted, from padding_idx + 1 on, and this
            one's number is padding_idx wherever it stands. So a text that holds a literal `<pad>` has the same positions
            here as in Transformers: packed or padded, in a run or in PEFT. None: all tokens are counted.
    """

    start: int = 0
    padding_idx: int | None = None

    def of(self, ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Numbers (tokens,) of sentences of these lengths that lie end to end."""
        counted = np.ones(len(ids), np.int64)
        if self.padding_idx is not None:
            counted = (ids != self.padding_idx).astype(np.int64)
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(counted)])
        inside: np.ndarray = before[1:] - np.repeat(before[np.cumsum(lengths) - lengths], lengths)
        if self.padding_idx is None:
            return self.start - 1 + inside
        return np.asarray(self.padding_idx + inside * counted)


FROM_ZERO = Positions()


@dataclass(frozen=True)
class Group:
    """Sentences of similar length: a rectangle of N × L places cut out of the packed rows.

    Attributes:
        rows: (N, L) int64, the packed row of each place; places past a sentence's end point at a filler row.
        mask: (N, L) bool, the places that hold a token.
    """

    rows: Tensor
    mask: Tensor


@dataclass(frozen=True)
class HeadIndex:
    """The groups once more, for attention with h heads on rows (K·T·h, d): one gather pads and moves heads to the front.

    Attributes:
        index: per group (h·N·L,) int64, the row of each place, heads first.
        bias: per group (h·N, L, L), 0 if a query may look and −inf where not.
        back: (K·T·h,) int64, for each row its place in the groups' blocks laid end to end.
        filler: rows of no sentence.
    """

    index: tuple[Tensor, ...]
    bias: tuple[Tensor, ...]
    back: Tensor
    filler: Tensor


@dataclass(frozen=True)
class PackedBatch:
    """The sentences of K clients' batches, ready for one forward pass.

    Every client has at least one filler row at its end. All gathers read zeros there or something that nothing else reads,
    so no gradient passes through them.

    Attributes:
        input_ids, position_ids: (1, K·T) int64.
        groups: every sentence once, longest first.
        places: (K·T,) int64, for each packed row its place in the groups' rectangles laid end to end; 0 for filler.
        filler: the rows of no sentence.
        pool: per group (N, 1, L) float32, the weights that make a sentence's vector of its tokens' vectors.
        sentences: (N_total,) int64, position of each pooled row's sentence in the order given to `pack`.
        clients: K.
        starts, lengths: (N_total,) int64 on the host, the packed row of each sentence's first token and its number of tokens.
    """

    input_ids: Tensor
    position_ids: Tensor
    groups: tuple[Group, ...]
    places: Tensor
    filler: Tensor
    pool: tuple[Tensor, ...]
    sentences: Tensor
    clients: int
    starts: np.ndarray
    lengths: np.ndarray
    _heads: dict[tuple[int, Sight, torch.dtype], HeadIndex] = field(default_factory=dict, repr=False)

    @property
    def inputs(self) -> dict[str, Any]:
        """What the backbone is called with."""
        return {"input_ids": self.input_ids, "position_ids": self.position_ids, "packed": self}

    @property
    def first_rows(self) -> np.ndarray:
        """(N_total,) int64 on the host: the row of each sentence's first token, in the order given to `pack`."""
        return self.starts

    def vectors(self, hidden: Tensor) -> Tensor:
        """Sentence vectors (N_total, width) float32, in the order of `sentences`, of hidden states (1, K·T, width)."""
        return pooled(hidden, self)

    def heads(self, count: int, sight: Sight, dtype: torch.dtype) -> HeadIndex:
        """The index for `count` heads, made once for all layers that see alike."""
        key = (count, sight, dtype)
        if key not in self._heads:
            self._heads[key] = _head_index(self, *key)
        return self._heads[key]


def pack(
    cohort: Sequence[Sequence[np.ndarray]],
    *,
    pooling: Pooling,
    pad_token_id: int = 0,
    positions: Positions = FROM_ZERO,
    device: torch.device = CPU,
) -> PackedBatch:
    """Packs the token ids of each client's sentences (each int64 (length,), not empty); some clients may have none."""
    totals = [sum(len(s) for s in sentences) for sentences in cohort]
    width = -(-(max(totals) + 1) // ROWS_MULTIPLE) * ROWS_MULTIPLE
    ids = np.full((len(cohort), width), pad_token_id, np.int64)
    numbers = np.full((len(cohort), width), positions.start, np.int64)
    starts, lengths = [], []
    for k, sentences in enumerate(cohort):
        if not sentences:
            continue
        sizes = np.array([len(s) for s in sentences])
        ends = np.cumsum(sizes)
        ids[k, : totals[k]] = np.concatenate(sentences)
        numbers[k, : totals[k]] = positions.of(ids[k, : totals[k]], sizes)
        starts.append(k * width + ends - sizes)
        lengths.append(sizes)
    start, length = np.concatenate(starts), np.concatenate(lengths)
    order = np.argsort(-length, kind="stable")
    filler = np.flatnonzero(np.arange(width) >= np.array(totals)[:, None])
    places = np.zeros(len(cohort) * width, np.int64)
    groups, pool, offset = [], [], 0
    for members in _split(order, length):
        rows, mask = _rectangle(start[members], length[members], int(filler[0]))
        places[rows[mask]] = offset + np.flatnonzero(mask)
        offset += mask.size
        groups.append(Group(to_device(rows, device), to_device(mask, device)))
        pool.append(to_device(pool_weights(mask, length[members], pooling), device))
    return PackedBatch(
        input_ids=to_device(ids, device).view(1, -1),
        position_ids=to_device(numbers, device).view(1, -1),
        groups=tuple(groups),
        places=to_device(places, device),
        filler=to_device(filler, device),
        pool=tuple(pool),
        sentences=to_device(order, device),
        clients=len(cohort),
        starts=start,
        lengths=length,
    )


def _split(order: np.ndarray, length: np.ndarray) -> list[np.ndarray]:
    """Cuts the sentences, longest first, in two where the rectangles then hold a third less than in one."""
    sizes = length[order]
    whole = len(order) * int(sizes[0])
    cuts = np.arange(1, len(order))
    if not len(cuts):
        return [order]
    areas = cuts * sizes[0] + (len(order) - cuts) * sizes[cuts]
    best = int(np.argmin(areas))
    if areas[best] > 0.67 * whole:
        return [order]
    return [order[: cuts[best]], order[cuts[best] :]]


def _rectangle(start: np.ndarray, length: np.ndarray, filler: int) -> tuple[np.ndarray, np.ndarray]:
    along = np.arange(int(length.max()))
    mask = along < length[:, None]
    return np.where(mask, start[:, None] + along, filler), mask


def pool_weights(mask: np.ndarray, length: np.ndarray, pooling: Pooling) -> np.ndarray:
    """(N, 1, L) float32, from `mask` (N, L), which is True in the first `length` (N,) places."""
    weights = np.zeros((mask.shape[0], 1, mask.shape[1]), np.float32)
    if pooling == "mean":
        weights[:, 0] = mask / length[:, None]
    else:
        weights[np.arange(len(length)), 0, 0 if pooling == "cls" else length - 1] = 1
    return weights


class _Take(torch.autograd.Function):
    """The groups' rectangles cut out of packed rows; the backward puts them back, and is again rows by index."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, batch: PackedBatch) -> Tensor:
        ctx.batch = batch
        return rows.index_select(0, torch.cat([g.rows.reshape(-1) for g in batch.groups]))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return put_back(grad, ctx.batch.places, ctx.batch.filler), None


def put_back(places: Tensor, back: Tensor, filler: Tensor) -> Tensor:
    """Packed rows (…, width) from places of rectangles; filler rows are zero."""
    return places.index_select(0, back).index_fill_(0, filler, 0)


def pooled(hidden: Tensor, batch: PackedBatch) -> Tensor:
    """Sentence vectors (N_total, width) float32, in the order of `batch.sentences`, of hidden states (1, K·T, width)."""
    taken: Tensor = _Take.apply(hidden[0], batch).float()  # type: ignore[no-untyped-call]
    vectors, offset = [], 0
    for group, weights in zip(batch.groups, batch.pool, strict=True):
        n, longest = group.rows.shape
        block = taken[offset : offset + n * longest].view(n, longest, -1)
        vectors.append(torch.bmm(weights, block)[:, 0])
        offset += n * longest
    return torch.cat(vectors)


def _head_index(batch: PackedBatch, heads: int, sight: Sight, dtype: torch.dtype) -> HeadIndex:
    head = torch.arange(heads, device=batch.places.device)
    index, bias = [], []
    back = torch.empty(len(batch.places), heads, dtype=torch.int64, device=head.device)
    start = 0
    for group in batch.groups:
        n, longest = group.rows.shape
        index.append((group.rows * heads + head[:, None, None]).reshape(-1))
        hidden = ~group.mask[:, None, :].expand(n, longest, longest)
        if min(sight.left, sight.right) < longest:
            along = torch.arange(longest, device=head.device)
            ahead = along - along[:, None]
            outside = (ahead > sight.right) | (-ahead > sight.left)
            hidden = hidden | (outside & group.mask[:, :, None])  # past a sentence's end, seeing nothing would be 0 / 0
        block = torch.zeros(n, longest, longest, dtype=dtype, device=head.device)
        bias.append(block.masked_fill_(hidden, float("-inf")).repeat(heads, 1, 1))
        inside = batch.places - start
        here = (inside >= 0) & (inside < n * longest)
        place = start * heads + head * n * longest + inside[:, None]
        back = torch.where(here[:, None], place, back)
        start += n * longest
    filler = (batch.filler[:, None] * heads + head).reshape(-1)
    return HeadIndex(tuple(index), tuple(bias), back.reshape(-1), filler)
