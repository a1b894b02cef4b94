"""Changes of base weights: what follows a frame for methods that move the frozen weights.

    envelope  magic 4s | version u8 | flags u8 | value type u8 | frame's length u64 | what the server calls the weights before
              and after the change, 16s each
    frame     a download or an upload
    forms     a u32 for each weight in the layout's order: 0 not there, 2³²−1 the difference itself, else the rank R of
              its factors
    values    weight by weight: the difference, or A (R, d_in) and then B (d_out, R); of the envelope's value type
    checksum  CRC-32 of all that stands before it, the frame included, u32

A message without such a change is the frame alone.
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass

from lora_a2.codec.values import VALUE_TYPES
from lora_a2.core.types import BaseUpdate, Factors, FloatArray, Layout
from lora_a2.errors import CodecError

_MAGIC, _VERSION = b"LoAB", 1
_ENVELOPE = struct.Struct("<4sBBBQ16s16s")
_CHECKSUM = struct.Struct("<I")
_WHOLE = 1
_ABSENT, _DENSE = 0, 2**32 - 1


@dataclass(frozen=True, slots=True)
class BaseMessage:
    """A change of the base weights: since the receiver's last round, or since the pre-trained ones if `whole`."""

    update: BaseUpdate
    whole: bool = False
    before: bytes = bytes(16)
    after: bytes = bytes(16)


def pack_base(update: BaseUpdate, layout: Layout, dtype: str) -> bytes:
    """A change of base weights as it stands behind a frame; empty if there is none.

    Raises:
        CodecError: a weight that the layout does not have, or of another shape, or a value that overflows.
    """
    if not update:
        return b""
    shapes = dict(layout.base)
    if not update.keys() <= shapes.keys():
        raise CodecError(f"The layout has no weights {sorted(update.keys() - shapes.keys())} to change.")
    forms, values = [], []
    for name, shape in layout.base:
        change = update.get(name)
        forms.append(_form(name, shape, change))
        if change is not None:
            values += [change.A, change.B] if isinstance(change, Factors) else [change]
    return struct.pack(f"<{len(forms)}I", *forms) + VALUE_TYPES[dtype].pack(values)


def attach(frame: bytes, packed: bytes, message: BaseMessage, dtype: str) -> bytes:
    """`frame` with what `pack_base` made behind it; the frame alone where that is nothing."""
    if not packed:
        return frame
    fields = _WHOLE * message.whole, VALUE_TYPES[dtype].code, len(frame), message.before, message.after
    envelope = _ENVELOPE.pack(_MAGIC, _VERSION, *fields)
    body = envelope + frame + packed
    return body + _CHECKSUM.pack(zlib.crc32(body))


def attach_base(frame: bytes, message: BaseMessage, layout: Layout, dtype: str) -> bytes:
    """`frame` with a change of base weights behind it; the frame alone if there is none.

    Raises:
        CodecError: as `pack_base`.
    """
    return attach(frame, pack_base(message.update, layout, dtype), message, dtype)


def detach_frame(data: bytes) -> bytes:
    """The frame of a message, whether or not something follows it.

    Raises:
        CodecError: the envelope does not add up.
    """
    if data[:4] != _MAGIC:
        return data
    return data[_ENVELOPE.size : _ENVELOPE.size + _envelope(data)[2]]


def read_base(data: bytes, layout: Layout) -> BaseMessage:
    """The change of base weights of a message, in float32; empty if it is a frame alone.

    Raises:
        CodecError: anything does not add up.
    """
    if data[:4] != _MAGIC:
        return BaseMessage({})
    whole, dtype, length, before, after = _envelope(data)
    start = _ENVELOPE.size + length
    directory = struct.Struct(f"<{len(layout.base)}I")
    if len(data) < start + directory.size + _CHECKSUM.size:
        raise CodecError(f"The message has {len(data)} bytes; its change of base weights is cut off.")
    forms = directory.unpack_from(data, start)
    if not any(forms):
        raise CodecError("The change of base weights is empty; expected a frame alone.")
    sizes = [size for (_, shape), form in zip(layout.base, forms, strict=True) for size in _blocks(shape, form)]
    content = memoryview(data)[start + directory.size : -_CHECKSUM.size]
    if len(content) != VALUE_TYPES[dtype].size(sizes):
        raise CodecError(
            f"The change of base weights has {len(content)} bytes of values; expected "
            f"{VALUE_TYPES[dtype].size(sizes)}: it was cut or extended."
        )
    given, found = _CHECKSUM.unpack_from(data, len(data) - 4)[0], zlib.crc32(data[:-4])
    if given != found:
        raise CodecError(f"The message has checksum {given:08x}; its content gives {found:08x}: damaged on the way.")
    values = VALUE_TYPES[dtype].unpack(content, sizes)
    update: dict[str, FloatArray | Factors] = {}
    offset = 0
    for (name, shape), form in zip(layout.base, forms, strict=True):
        if form != _ABSENT:
            size = _size(shape, form)
            update[name] = _shaped(values[offset : offset + size], shape, form)
            offset += size
    return BaseMessage(update, whole, before, after)


def base_parameters(update: BaseUpdate) -> int:
    """Number of values that `update` carries."""
    return sum(c.A.size + c.B.size if isinstance(c, Factors) else c.size for c in update.values())


def base_size(update_parameters: int, layout: Layout, dtype: str) -> int:
    """How many bytes `attach_base` adds for a change of this many values."""
    if not update_parameters:
        return 0
    return _ENVELOPE.size + 4 * len(layout.base) + VALUE_TYPES[dtype].size([update_parameters]) + _CHECKSUM.size


def _envelope(data: bytes) -> tuple[bool, str, int, bytes, bytes]:
    """Whole or not, value type, the frame's length, the names of the weights before and after."""
    if len(data) < _ENVELOPE.size:
        raise CodecError(f"The message has {len(data)} bytes; its envelope alone has {_ENVELOPE.size}.")
    _, version, flags, code, length, before, after = _ENVELOPE.unpack_from(data)
    dtype = next((name for name, row in VALUE_TYPES.items() if row.code == code), None)
    if version != _VERSION or flags & ~_WHOLE or dtype is None or length > len(data):
        raise CodecError(
            f"The envelope has version {version}, flags {flags}, value type {code} and a frame of {length} bytes; "
            f"expected version {_VERSION} and a message that holds it: run the same release of lora-a2 at both ends."
        )
    return bool(flags), dtype, length, before, after


def _form(name: str, shape: tuple[int, ...], change: FloatArray | Factors | None) -> int:
    if change is None:
        return _ABSENT
    if not isinstance(change, Factors):
        if change.shape != shape:
            raise CodecError(f"The change of {name!r} is {change.shape}; expected {shape}.")
        return _DENSE
    if (change.B.shape[0], change.A.shape[1]) != shape or change.A.shape[0] != change.B.shape[1] or not change.rank:
        raise CodecError(f"The change of {name!r} has factors {change.B.shape} and {change.A.shape}; expected {shape}.")
    _size(shape, change.rank)
    return change.rank


def _size(shape: tuple[int, ...], form: int) -> int:
    if form == _ABSENT:
        return 0
    if form == _DENSE:
        return math.prod(shape)
    if len(shape) != 2:
        raise CodecError(f"A weight of shape {shape} has no factors; expected its difference.")
    if form > min(shape):
        raise CodecError(f"The factors of a weight of shape {shape} have rank {form}; expected at most {min(shape)}.")
    return form * (shape[0] + shape[1])


def _blocks(shape: tuple[int, ...], form: int) -> list[int]:
    """The sizes of a change's blocks: one of the difference, or of A and of B."""
    size = _size(shape, form)
    return [form * shape[1], size - form * shape[1]] if form not in (_ABSENT, _DENSE) else [size]


def _shaped(values: FloatArray, shape: tuple[int, ...], form: int) -> FloatArray | Factors:
    if form == _DENSE:
        return values.reshape(shape).copy()
    cut = form * shape[1]
    return Factors(A=values[:cut].reshape(form, shape[1]).copy(), B=values[cut:].reshape(shape[0], form).copy())
