"""Value types: how float32 values stand on the wire. A new one is a row of `VALUE_TYPES`. NumPy only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from lora_a2.core.types import FloatArray
from lora_a2.errors import CodecError


@dataclass(frozen=True)
class ValueType:
    """A row. Values come in blocks: a rank slice, a tensor, or all entries of a sparse frame.

    Attributes:
        code: its number on the wire, for ever.
        pack: (blocks) → bytes. Raises CodecError for a finite value that it cannot hold.
        unpack: (bytes of the right length, sizes of the blocks) → the blocks one after the other, float32.
        size: (sizes of the blocks) → bytes.
    """

    code: int
    pack: Callable[[Sequence[FloatArray]], bytes]
    unpack: Callable[[bytes | memoryview, Sequence[int]], FloatArray]
    size: Callable[[Sequence[int]], int]


def _pack(name: str, dtype: npt.DTypeLike, blocks: Sequence[FloatArray]) -> bytes:
    flat = _joined(blocks)
    with np.errstate(over="ignore"):  # an overflow is looked for below
        packed = flat.astype(dtype)
    _check_overflow(name, flat, np.isinf(packed))
    return packed.tobytes()


def _joined(blocks: Sequence[FloatArray]) -> FloatArray:
    return np.concatenate([block.ravel() for block in blocks]) if blocks else np.empty(0, np.float32)


def _check_overflow(name: str, flat: FloatArray, infinite: npt.NDArray[np.bool_]) -> None:
    lost = infinite & np.isfinite(flat)
    if lost.any():
        worst = float(np.abs(flat[lost]).max())
        raise CodecError(
            f"{int(lost.sum())} of {flat.size} values overflow {name}, the largest is {worst:g}: use fp32."
        )


def _unpack(dtype: npt.DTypeLike, data: bytes | memoryview, sizes: Sequence[int]) -> FloatArray:
    return np.frombuffer(data, dtype, sum(sizes)).astype(np.float32)


def _pack_bf16(blocks: Sequence[FloatArray]) -> bytes:
    """The upper half of each float32, rounded to the nearest, to an even last bit where two are as near."""
    flat = _joined(blocks)
    bits = np.ascontiguousarray(flat, "<f4").view("<u4")
    # A carry goes on into the exponent, as it should; that of a NaN would end in its sign, so that NaNs are cut and made quiet.
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    packed = np.where(np.isnan(flat), (bits >> 16 | 0x40).astype("<u2"), rounded)
    _check_overflow("bf16", flat, packed & 0x7FFF == 0x7F80)
    return packed.tobytes()


def _unpack_bf16(data: bytes | memoryview, sizes: Sequence[int]) -> FloatArray:
    halves = np.frombuffer(data, "<u2", sum(sizes))
    return (halves.astype("<u4") << 16).view("<f4").astype(np.float32)


def _size(width: int, sizes: Sequence[int]) -> int:
    return width * sum(sizes)


def _cast(name: str, code: int, dtype: str) -> ValueType:
    """A number type of NumPy."""
    return ValueType(
        code, partial(_pack, name, dtype), partial(_unpack, dtype), partial(_size, np.dtype(dtype).itemsize)
    )


VALUE_TYPES: Mapping[str, ValueType] = {
    "fp32": _cast("fp32", 0, "<f4"),
    "fp16": _cast("fp16", 1, "<f2"),
    "bf16": ValueType(2, _pack_bf16, _unpack_bf16, partial(_size, 2)),
}
EXACT = "fp32"
"""The one that loses nothing."""


def as_sent(values: FloatArray, name: str) -> FloatArray:
    """`values` as one block, as the receiver sees them.

    Raises:
        CodecError: a finite value overflows.
    """
    if name == EXACT:
        return values
    kind = VALUE_TYPES[name]
    return kind.unpack(kind.pack([values]), [values.size]).reshape(values.shape)


def fits(values: FloatArray, name: str) -> bool:
    """Whether no finite value overflows the value type."""
    try:
        VALUE_TYPES[name].pack([values])
    except CodecError:
        return False
    return True
