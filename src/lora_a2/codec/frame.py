"""The frame's fixed parts: header, packed values and checksum (the format is drawn in `codec/__init__.py`)."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from lora_a2.codec.values import VALUE_TYPES
from lora_a2.core.types import ALL_FACTORS, EVERYTHING, Factor, FloatArray
from lora_a2.errors import CodecError

Kind = Literal["download", "upload"]

# These numbers stand on the wire for ever: a new kind takes a new one.
_KIND_CODES: dict[Kind, int] = {"download": 0, "upload": 1}
_FACTOR_BITS: dict[Factor, int] = {"A": 1, "B": 2, "R": 4}
_HAS_MASK, _SPARSE, _CHANGED = 1, 2, 4

_MAGIC, _VERSION = b"LoA2", 1
_PREFIX = struct.Struct("<4sB")
_HEADER = struct.Struct("<4sBB16sIIHBBBBdQd")
_HOLDS = struct.Struct("<i16s")
_CHECKSUM = struct.Struct("<I")
HEADER_SIZE = _HEADER.size
OVERHEAD = _HEADER.size + _CHECKSUM.size
"""Bytes of every upload besides bitmap and values."""
HOLDS_SIZE = _HOLDS.size
"""Bytes of a download between its header and its bitmap."""


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
    value_type: str
    has_mask: bool
    lora_alpha: float
    num_examples: int = 0
    train_loss: float = 0.0
    sparse: bool = False
    changed: bool = False
    since: int = EVERYTHING
    digest: bytes = bytes(16)

    @property
    def size(self) -> int:
        """Bytes before the bitmap."""
        return HEADER_SIZE + HOLDS_SIZE * (self.kind == "download")


def write_frame(header: Header, body: bytes) -> bytes:
    """One whole frame; `body` is the bitmap and the values.

    Raises:
        CodecError: the header does not add up.
    """
    _check(header)
    data = _pack(header) + body
    return data + _CHECKSUM.pack(zlib.crc32(data))


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


def read_values(data: bytes, header: Header, bitmap_size: int, blocks: Sequence[int]) -> FloatArray:
    """The frame's values as a new float32 array (Σ blocks,), once length and checksum are found right.

    Raises:
        CodecError: the frame is short or long, or its checksum is wrong.
    """
    kind = VALUE_TYPES[header.value_type]
    expected = header.size + bitmap_size + kind.size(blocks) + _CHECKSUM.size
    if len(data) != expected:
        raise CodecError(f"The frame has {len(data)} bytes; its header asks for {expected}: it was cut or extended.")
    given, found = _CHECKSUM.unpack_from(data, len(data) - _CHECKSUM.size)[0], zlib.crc32(data[: -_CHECKSUM.size])
    if given != found:
        raise CodecError(f"The frame has checksum {given:08x}; its content gives {found:08x}: damaged on the way.")
    return kind.unpack(memoryview(data)[header.size + bitmap_size : -_CHECKSUM.size], blocks)


def spell(factors: Iterable[Factor]) -> str:
    """`{A, B}`, for messages."""
    return "{" + ", ".join(sorted(factors)) + "}"


def _check(header: Header) -> None:
    """What holds in every frame, whoever writes or reads it."""
    if header.server_round < 1:
        raise CodecError(f"The frame is of server round {header.server_round}; they count from 1.")
    if header.has_mask + header.sparse + header.changed > 1:
        raise CodecError("The frame has several bitmaps (mask, sparse, changed); expected one at most.")
    if header.rank < 1:
        raise CodecError(f"The frame has rank {header.rank}; expected at least 1.")
    if not (math.isfinite(header.lora_alpha) and header.lora_alpha > 0):
        raise CodecError(f"The frame has lora_alpha {header.lora_alpha}; expected a positive number.")
    if header.kind == "upload":
        if header.num_examples < 1:
            raise CodecError(f"The upload has num_examples {header.num_examples}; expected at least 1.")
        if header.present != header.trainable:
            raise CodecError(f"The upload carries {spell(header.present)}, but trained {spell(header.trainable)}.")
        if header.changed:
            raise CodecError("The upload has the bitmap of a download.")
        return
    if not EVERYTHING <= header.since < header.server_round or (header.since == EVERYTHING) == header.changed:
        raise CodecError(
            f"The download of round {header.server_round} builds on round {header.since}, and says of what is "
            f"changed: {header.changed}; expected an earlier round, or all of it."
        )
    if header.num_examples or header.train_loss or header.has_mask:
        raise CodecError(
            f"The download has num_examples {header.num_examples}, train_loss {header.train_loss} "
            f"and a mask: {header.has_mask}; expected none of them."
        )
    if not header.trainable <= header.present:
        trained, present = spell(header.trainable), spell(header.present)
        raise CodecError(f"The download asks to train {trained}, but carries {present}: what is trained must travel.")


def _pack(header: Header) -> bytes:
    flags = _HAS_MASK * header.has_mask | _SPARSE * header.sparse | _CHANGED * header.changed
    codes = _KIND_CODES[header.kind], VALUE_TYPES[header.value_type].code, flags
    try:
        holds = _HOLDS.pack(header.since, header.digest) if header.kind == "download" else b""
        fixed = _HEADER.pack(
            *(_MAGIC, _VERSION, codes[0], header.layout_digest, header.server_round, header.client, header.rank),
            *(_bits(header.trainable), _bits(header.present), codes[1], codes[2]),
            *(header.lora_alpha, header.num_examples, header.train_loss),
        )
        return fixed + holds
    except struct.error as error:
        raise CodecError(f"A number does not fit its field ({error}): {header}.") from None


def _unpack(data: bytes) -> Header:
    """The header's fields; magic and version are known to be right."""
    fields = _HEADER.unpack_from(data)
    kind_code, digest, server_round, client, rank, trained_bits, present_bits, value_code, flags = fields[2:11]
    kind = next((kind for kind, code in _KIND_CODES.items() if code == kind_code), None)
    value_type = next((name for name, row in VALUE_TYPES.items() if row.code == value_code), None)
    if kind is None:
        raise CodecError(f"The frame has kind {kind_code}; known are {list(_KIND_CODES.values())}.")
    if value_type is None:
        raise CodecError(
            f"The frame has value type {value_code}; known are {[row.code for row in VALUE_TYPES.values()]}."
        )
    if flags & ~(_HAS_MASK | _SPARSE | _CHANGED):
        raise CodecError(f"The frame has flags {flags:#04x}; known are {_HAS_MASK | _SPARSE | _CHANGED:#04x}.")
    trained, present = _factors(trained_bits), _factors(present_bits)
    has_mask, sparse = bool(flags & _HAS_MASK), bool(flags & _SPARSE)
    alpha, examples, loss = fields[11:]
    since, state = EVERYTHING, bytes(16)
    if kind == "download":
        if len(data) < OVERHEAD + HOLDS_SIZE:
            raise CodecError(f"The message has {len(data)} bytes; a download has at least {OVERHEAD + HOLDS_SIZE}.")
        since, state = _HOLDS.unpack_from(data, HEADER_SIZE)
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
        changed=bool(flags & _CHANGED),
        since=since,
        digest=state,
    )


def _bits(factors: Iterable[Factor]) -> int:
    return sum(_FACTOR_BITS[factor] for factor in factors)


def _factors(bits: int) -> frozenset[Factor]:
    if bits & ~_bits(ALL_FACTORS):
        raise CodecError(f"The frame has factor bits {bits:#04x}; known are {_bits(ALL_FACTORS):#04x}.")
    return frozenset(factor for factor in ALL_FACTORS if bits & _FACTOR_BITS[factor])
