"""How large a message is, without making it: parameters (values carried) and bytes (header, bitmap, checksum too)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from lora_a2.codec.frame import ValueType, frame_size
from lora_a2.core.types import Adapter, Factor, Layout, Mask


def download_parameters(layout: Layout, rank: int, factors: frozenset[Factor]) -> int:
    """Number of values in a download of a rank-`rank` adapter's `factors` and the head."""
    return upload_parameters(layout, rank, None, factors)


def download_size(layout: Layout, rank: int, factors: frozenset[Factor], dtype: ValueType) -> int:
    """`len(encode_download(...))`, exactly."""
    return frame_size(0, download_parameters(layout, rank, factors), dtype)


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
    widths = (sum(module.width(factor) for factor in trainable) for module in layout.modules)
    head = sum(math.prod(shape) for _, shape in layout.head)
    return sum(count * width for count, width in zip(counts, widths, strict=True)) + head


def upload_size(
    layout: Layout, rank: int, selected: Mask | Sequence[int] | None, trainable: frozenset[Factor], dtype: ValueType
) -> int:
    """`len(encode_upload(...))`, exactly; arguments as for `upload_parameters`. Only None goes without a bitmap."""
    bitmap = 0 if selected is None else bitmap_size(layout, rank)
    return frame_size(bitmap, upload_parameters(layout, rank, selected, trainable), dtype)


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
