"""The frame's fixed parts: header, packed values and checksum (the format is drawn in `codec/__init__.py`)."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from lora_a2.core.types import FACTORS, Factor, FloatArray
from lora_a2.errors import CodecError

ValueType = Literal["fp32", "fp16"]
VALUE_TYPES: tuple[ValueType, ...] = get_args(ValueType)
Kind = Literal["download", "upload"]

_DTYPES: dict[ValueType, np.dtype[Any]] = {"fp32": np.dtype("<f4"), "fp16": np.dtype("<f2")}
# These numbers stand on the wire for ever: a new kind or value type takes a new one.
_VALUE_CODES: dict[ValueType, int] = {"fp32": 0, "fp16": 1}
_KIND_CODES: dict[Kind, int] = {"download": 0, "upload": 1}
_FACTOR_BITS: dict[Factor, int] = {"A": 1, "B": 2}
_HAS_MASK, _SPARSE = 1, 2

_MAGIC, _VERSION = b"LoA2", 1
_PREFIX = struct.Struct("<4sB")
_HEADER = struct.Struct("<4sBB16sIIHBBBBdQd")
_CHECKSUM = struct.Struct("<I")
HEADER_SIZE = _HEADER.size
OVERHEAD = _HEADER.size + _CHECKSUM.size
"""Bytes of every frame besides bitmap and values."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a frame says before its values; `layout_digest` is 16 bytes, `present` the factors that travel."""

    kind: Kind
    layout_digest: bytes
    server_round: int
    client: int
    rank: int
    trainable: frozenset[Factor]
    present: frozenset[Factor]
    value_type: ValueType
    has_mask: bool
    lora_alpha: float
    num_examples: int = 0
    train_loss: float = 0.0
    sparse: bool = False


def write_frame(header: Header, bitmap: bytes, values: Sequence[FloatArray]) -> bytes:
    """One whole frame; `values` are written one after the other, each in C order.

    Raises:
        CodecError: the header does not add up or a finite value overflows the value type.
    """
    _check(header)
    body = _pack(header) + bitmap + packed(values, header.value_type)
    return body + _CHECKSUM.pack(zlib.crc32(body))


def read_header(data: bytes, kind: Kind, layout_digest: bytes, server_round: int | None = None) -> Header:
    """The header of a frame that must be of `kind` and for this layout (and this server round, unless None).

    Raises:
        CodecError: it is too short, not a frame, of another version, kind, layout or round, or does not add up.
    """
    if len(data) < OVERHEAD:
        raise CodecError(f"The message has {len(data)} bytes; a frame has at least {OVERHEAD}.")
    magic, version = _PREFIX.unpack_from(data)
    if magic != _MAGIC:
        raise CodecError(f"The message starts with {magic!r}; a frame of lora-a2 starts with {_MAGIC!r}.")
    if version != _VERSION:
        raise CodecError(
            f"The frame has version {version}; expected {_VERSION}: run the same release of lora-a2 at both ends."
        )
    header = _unpack(data)
    if header.kind != kind:
        raise CodecError(f"The frame is of kind {header.kind!r}; expected {kind!r}.")
    if header.layout_digest != layout_digest:
        raise CodecError(
            f"The frame has layout digest {header.layout_digest.hex()}; expected {layout_digest.hex()}: "
            "give both ends the same model, target modules and head."
        )
    _check(header)
    if server_round is not None and header.server_round != server_round:
        raise CodecError(f"The frame is of server round {header.server_round}; expected {server_round}.")
    return header


def read_values(data: bytes, header: Header, bitmap_size: int, count: int) -> FloatArray:
    """The frame's `count` values as a new float32 array (count,), once length and checksum are found right.

    Raises:
        CodecError: the frame is short or long, or its checksum is wrong.
    """
    expected = frame_size(bitmap_size, count, header.value_type)
    if len(data) != expected:
        raise CodecError(f"The frame has {len(data)} bytes; its header asks for {expected}: it was cut or extended.")
    given, found = _CHECKSUM.unpack_from(data, len(data) - _CHECKSUM.size)[0], zlib.crc32(data[: -_CHECKSUM.size])
    if given != found:
        raise CodecError(f"The frame has checksum {given:08x}; its content gives {found:08x}: damaged on the way.")
    packed = np.frombuffer(data, _DTYPES[header.value_type], count, HEADER_SIZE + bitmap_size)
    # A copy also for fp32: views of `data` would be read-only and unaligned.
    return packed.astype(np.float32)


def frame_size(bitmap_size: int, count: int, value_type: ValueType) -> int:
    """Bytes of a frame with `count` values."""
    return OVERHEAD + bitmap_size + count * _DTYPES[value_type].itemsize


def spell(factors: Iterable[Factor]) -> str:
    """`{A, B}`, for messages."""
    return "{" + ", ".join(sorted(factors)) + "}"


def _check(header: Header) -> None:
    """What holds in every frame, whoever writes or reads it."""
    if header.server_round < 1:
        raise CodecError(f"The frame is of server round {header.server_round}; they count from 1.")
    if header.has_mask and header.sparse:
        raise CodecError("The frame has a mask and is sparse; expected one of the two at most.")
    if header.rank < 1:
        raise CodecError(f"The frame has rank {header.rank}; expected at least 1.")
    if not (math.isfinite(header.lora_alpha) and header.lora_alpha > 0):
        raise CodecError(f"The frame has lora_alpha {header.lora_alpha}; expected a positive number.")
    if header.kind == "upload":
        if header.num_examples < 1:
            raise CodecError(f"The upload has num_examples {header.num_examples}; expected at least 1.")
        if header.present != header.trainable:
            raise CodecError(f"The upload carries {spell(header.present)}, but trained {spell(header.trainable)}.")
        return
    if header.num_examples or header.train_loss or header.has_mask:
        raise CodecError(
            f"The download has num_examples {header.num_examples}, train_loss {header.train_loss} "
            f"and a mask: {header.has_mask}; expected none of them."
        )
    if not header.trainable <= header.present:
        trained, present = spell(header.trainable), spell(header.present)
        raise CodecError(f"The download asks to train {trained}, but carries {present}: what is trained must travel.")


def _pack(header: Header) -> bytes:
    flags = _HAS_MASK * header.has_mask | _SPARSE * header.sparse
    codes = _KIND_CODES[header.kind], _VALUE_CODES[header.value_type], flags
    try:
        return _HEADER.pack(
            *(_MAGIC, _VERSION, codes[0], header.layout_digest, header.server_round, header.client, header.rank),
            *(_bits(header.trainable), _bits(header.present), codes[1], codes[2]),
            *(header.lora_alpha, header.num_examples, header.train_loss),
        )
    except struct.error as error:
        raise CodecError(f"A number does not fit its field ({error}): {header}.") from None


def _unpack(data: bytes) -> Header:
    """The header's fields; magic and version are known to be right."""
    fields = _HEADER.unpack_from(data)
    kind_code, digest, server_round, client, rank, trained_bits, present_bits, value_code, flags = fields[2:11]
    kind = next((kind for kind, code in _KIND_CODES.items() if code == kind_code), None)
    value_type = next((v for v, code in _VALUE_CODES.items() if code == value_code), None)
    if kind is None:
        raise CodecError(f"The frame has kind {kind_code}; known are {list(_KIND_CODES.values())}.")
    if value_type is None:
        raise CodecError(f"The frame has value type {value_code}; known are {list(_VALUE_CODES.values())}.")
    if flags & ~(_HAS_MASK | _SPARSE):
        raise CodecError(f"The frame has flags {flags:#04x}; known are {_HAS_MASK:#04x} and {_SPARSE:#04x}.")
    trained, present = _factors(trained_bits), _factors(present_bits)
    has_mask, sparse = bool(flags & _HAS_MASK), bool(flags & _SPARSE)
    alpha, examples, loss = fields[11:]
    return Header(
        kind=kind,
        layout_digest=digest,
        server_round=server_round,
        client=client,
        rank=rank,
        trainable=trained,
        present=present,
        value_type=value_type,
        has_mask=has_mask,
        lora_alpha=alpha,
        num_examples=examples,
        train_loss=loss,
        sparse=sparse,
    )


def _bits(factors: Iterable[Factor]) -> int:
    return sum(_FACTOR_BITS[factor] for factor in factors)


def _factors(bits: int) -> frozenset[Factor]:
    if bits & ~_bits(FACTORS):
        raise CodecError(f"The frame has factor bits {bits:#04x}; known are {_bits(FACTORS):#04x}.")
    return frozenset(factor for factor in FACTORS if bits & _FACTOR_BITS[factor])


def as_sent(values: FloatArray, value_type: ValueType) -> FloatArray:
    """`values` as the receiver will see them, in float32; what overflows is infinite."""
    with np.errstate(over="ignore"):
        return values.astype(_DTYPES[value_type]).astype(np.float32)


def fits(values: FloatArray, value_type: ValueType) -> bool:
    """Whether no finite value overflows the value type."""
    return bool((np.isfinite(as_sent(values, value_type)) | ~np.isfinite(values)).all())


def packed(values: Sequence[FloatArray], value_type: ValueType) -> bytes:
    """Values one after the other, each in C order.

    Raises:
        CodecError: a finite value overflows the value type.
    """
    flat = np.concatenate([v.ravel() for v in values]) if values else np.empty(0, np.float32)
    with np.errstate(over="ignore"):  # an overflow is looked for below
        packed = flat.astype(_DTYPES[value_type])
    lost = np.isinf(packed) & np.isfinite(flat)
    if lost.any():
        worst = float(np.abs(flat[lost]).max())
        raise CodecError(
            f"{int(lost.sum())} of {flat.size} values overflow {value_type}, the largest is {worst:g}: use fp32."
        )
    return packed.tobytes()


def unpacked(data: bytes, value_type: ValueType, count: int) -> FloatArray:
    """The inverse of `packed`, (count,) float32.

    Raises:
        CodecError: `data` has not the bytes of `count` values.
    """
    expected = count * _DTYPES[value_type].itemsize
    if len(data) != expected:
        raise CodecError(f"The message has {len(data)} bytes of values; expected {expected}: it was cut or extended.")
    return np.frombuffer(data, _DTYPES[value_type]).astype(np.float32)
