"""How large a message is, without making it: parameters (values carried) and bytes (header, bitmap, checksum too)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from lora_a2.codec.frame import HOLDS_SIZE, OVERHEAD
from lora_a2.codec.values import VALUE_TYPES
from lora_a2.core.types import Adapter, Factor, Layout, Mask


def changed_size(layout: Layout, rank: int, factors: frozenset[Factor], parameters: int, dtype: str) -> int:
    """Bytes of a download that carries this many values of what changed, of `factors` and the head."""
    bits = len(factors) * rank * len(layout.modules) + len(layout.head)
    return OVERHEAD + HOLDS_SIZE + (bits + 7) // 8 + VALUE_TYPES[dtype].size([parameters])


def whole_size(layout: Layout, rank: int, factors: frozenset[Factor], dtype: str) -> int:
    """Bytes of a download of all values of `factors` and the head."""
    return OVERHEAD + HOLDS_SIZE + VALUE_TYPES[dtype].size([upload_parameters(layout, rank, None, factors)])


def upload_parameters(
    layout: Layout, rank: int, selected: Mask | Sequence[int] | None, trainable: frozenset[Factor]
) -> int:
    """Number of values in an upload: the selected rank slices of the trained factors, and the head.

    Args:
        layout: modules and head.
        rank: the adapter's rank r.
        selected: the mask, or how many slices of each module in the layout's order; None: all r of every module.
        trainable: the factors that were trained.
    """
    counts = slice_counts(layout, rank, selected)
    widths = (sum(module.width(factor, rank) for factor in trainable) for module in layout.modules)
    head = sum(math.prod(shape) for _, shape in layout.head)
    return sum(count * width for count, width in zip(counts, widths, strict=True)) + head


def upload_size(
    layout: Layout, rank: int, selected: Mask | Sequence[int] | None, trainable: frozenset[Factor], dtype: str
) -> int:
    """`len(encode(upload, …))`, exactly; arguments as for `upload_parameters`. Only None goes without a bitmap."""
    bitmap = 0 if selected is None else bitmap_size(layout, rank)
    return OVERHEAD + bitmap + VALUE_TYPES[dtype].size([upload_parameters(layout, rank, selected, trainable)])


def zero_entries(adapter: Adapter, factors: frozenset[Factor]) -> int:
    """Number of entries of `factors` that a sparse frame leaves out."""
    parts = [f.get(factor) for f in adapter.factors.values() for factor in factors]
    return sum(part.size - int(np.count_nonzero(part)) for part in parts)


def bitmap_size(layout: Layout, rank: int) -> int:
    """Bytes of one bit a (module, rank)."""
    return (len(layout.modules) * rank + 7) // 8


def slice_counts(layout: Layout, rank: int, selected: Mask | Sequence[int] | None) -> list[int]:
    """Number of selected rank slices of each module, in the layout's order."""
    if selected is None:
        return [rank] * len(layout.modules)
    if isinstance(selected, Mapping):
        return [int(np.count_nonzero(selected[module.name])) for module in layout.modules]
    return list(selected)
