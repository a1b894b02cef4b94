"""Downloads and uploads to messages and back (the format is drawn in `codec/__init__.py`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lora_a2.codec.base import BaseMessage, attach, detach_frame, pack_base, read_base
from lora_a2.codec.frame import Header, read_header, read_values, write_frame
from lora_a2.codec.sizes import bitmap_size
from lora_a2.codec.values import EXACT, VALUE_TYPES, as_sent
from lora_a2.core.algebra import truncate
from lora_a2.core.tensors import Key
from lora_a2.core.types import (
    ALL_FACTORS,
    Adapter,
    BoolArray,
    Download,
    Factor,
    Factors,
    FloatArray,
    Layout,
    Mask,
    Upload,
)
from lora_a2.errors import CodecError


@dataclass(frozen=True)
class DownloadSchema:
    """What both ends know of downloads: the layout, the value type, the factors that travel, whether zeros are left out."""

    layout: Layout
    value_type: str
    kinds: frozenset[Factor]
    sparse: bool = False


@dataclass(frozen=True)
class UploadSchema:
    """What both ends know of an upload: the layout, the value type, whether zeros are left out, the adapter's factors."""

    layout: Layout
    value_type: str
    sparse: bool = False
    factors: tuple[Factor, ...] = ("A", "B")


@dataclass(frozen=True)
class Body:
    """A download but for whom it is for: bitmap and values, and the change of base weights."""

    frame: bytes
    base: bytes
    schema: DownloadSchema


def encode_body(download: Download, schema: DownloadSchema, base: bytes | None = None) -> Body:
    """What downloads of the same content have in common; see `addressed`.

    `base` is what an earlier body packed of the same change of base weights; None: it is packed here. Base weights travel in float32 whatever the value type, since rounding errors would add up in them.

    Raises:
        CodecError: the adapter does not fit the layout, or a value overflows the value type.
    """
    adapter, layout = download.adapter, schema.layout
    rank = _checked_rank(adapter, layout)
    kinds = [x for x in adapter.kinds if x in schema.kinds]
    if download.changed is None:
        bitmap, blocks = b"", _blocks(adapter, layout, kinds, None)
    else:
        bitmap = np.packbits(_bits(download.changed, layout, kinds, rank)).tobytes()
        blocks = _changed_blocks(adapter, layout, kinds, download.changed)
    frame = bitmap + _content(blocks, layout, schema.value_type, schema.sparse)
    return Body(frame, pack_base(download.base_update, layout, EXACT) if base is None else base, schema)


def addressed(download: Download, body: Body) -> bytes:
    """The message of one client.

    Raises:
        CodecError: a trained factor does not travel, or a number does not fit its field.
    """
    schema, adapter = body.schema, download.adapter
    header = Header(
        kind="download",
        layout_digest=schema.layout.digest,
        server_round=download.server_round,
        client=download.client,
        rank=adapter.rank,
        trainable=download.shared,
        present=schema.kinds,
        value_type=schema.value_type,
        has_mask=False,
        lora_alpha=adapter.lora_alpha,
        sparse=schema.sparse,
        changed=download.changed is not None,
        since=download.since,
        digest=download.digest,
    )
    base = BaseMessage(download.base_update, download.base_whole, download.base_before, download.base_after)
    return attach(write_frame(header, body.frame), body.base, base, EXACT)


def encode(message: Download | Upload, schema: DownloadSchema | UploadSchema) -> bytes:
    """The message that `message` is on the wire.

    Raises:
        CodecError: it does not fit the schema, a number does not fit its field, or a value overflows the value type.
    """
    if isinstance(message, Download) and isinstance(schema, DownloadSchema):
        return addressed(message, encode_body(message, schema))
    assert isinstance(message, Upload) and isinstance(schema, UploadSchema), "messages go with their schema"
    return _encode_upload(message, schema)


def _encode_upload(upload: Upload, schema: UploadSchema) -> bytes:
    """The slices of the shared factors that the mask selects (None: all), the head, and what changed of base weights.

    What `update` holds outside of them does not travel; by `Upload`'s contract it is zero.
    """
    update, mask, layout = upload.update, upload.mask, schema.layout
    header = Header(
        kind="upload",
        layout_digest=layout.digest,
        server_round=upload.server_round,
        client=upload.client,
        rank=_checked_rank(update, layout),
        trainable=upload.shared,
        present=upload.shared,
        value_type=schema.value_type,
        has_mask=mask is not None,
        lora_alpha=update.lora_alpha,
        num_examples=upload.num_examples,
        train_loss=upload.train_loss,
        sparse=schema.sparse,
    )
    bitmap = b"" if mask is None else _pack_mask(mask, layout, header.rank)
    kinds = [x for x in update.kinds if x in upload.shared]
    content = _content(_blocks(update, layout, kinds, mask), layout, schema.value_type, schema.sparse)
    base = pack_base(upload.base_update, layout, schema.value_type)
    return attach(write_frame(header, bitmap + content), base, BaseMessage(upload.base_update), schema.value_type)


class Address(NamedTuple):
    """What a download says of itself before it is decoded."""

    server_round: int
    client: int
    since: int
    rank: int


def read_address(data: bytes, layout: Layout, max_rank: int | None = None) -> Address:
    """Round and client of a download, the round on which it builds, and the rank of its adapter.

    Raises:
        CodecError: it is no download for this layout, or of a rank above `max_rank`.
    """
    header = read_header(detach_frame(data), "download", layout.digest)
    if max_rank is not None and header.rank > max_rank:
        raise CodecError(f"The frame has rank {header.rank}; expected at most {max_rank}.")
    return Address(header.server_round, header.client, header.since, header.rank)


def decode_download(
    data: bytes, schema: DownloadSchema, held: Adapter | None, *, server_round: int | None = None
) -> Download:
    """The download that `data` stands for, in float32 whatever the value type.

    Args:
        data: one whole message.
        schema: this end's; layout, factors and value type must be those of the message.
        held: supplies what does not travel, at the frame's rank; may be None if everything does.
        server_round: the round to insist on; None: any.

    Raises:
        CodecError: anything does not add up.
    """
    layout, frame = schema.layout, detach_frame(data)
    header = read_header(frame, "download", layout.digest, server_round)
    wanted = schema.kinds, schema.value_type, schema.sparse
    if (header.present, header.value_type, header.sparse) != wanted:
        raise CodecError(
            f"The download carries {sorted(header.present)} as {header.value_type} (sparse: {header.sparse}); expected "
            f"{sorted(wanted[0])} as {wanted[1]} (sparse: {wanted[2]})."
        )
    rank = header.rank
    own = None if held is None else truncate(held, rank) if held.rank > rank else held
    factors = ALL_FACTORS if (own is not None and "R" in own.kinds) or "R" in schema.kinds else ("A", "B")
    kinds = [x for x in factors if x in schema.kinds]
    whole = _shapes(layout, factors, rank)
    size, keep = 0, _all_rows(layout, kinds, rank)
    if header.changed:
        count = len(kinds) * rank * len(layout.modules) + len(layout.head)
        size = (count + 7) // 8
        keep = _unpack_bits(frame[header.size : header.size + size], layout, kinds, rank)
    sizes = [int(keep[x, m.name].sum()) * m.width(x, rank) for m in layout.modules for x in kinds]
    sizes += [math.prod(shape) * int(keep["head", name]) for name, shape in layout.head]
    values = _read(frame, header, layout, size, sizes)
    needed = [key for key in whole if key not in keep or not keep[key].all()]
    tensors = _own(own, needed, whole)
    _fill(tensors, values, layout, kinds, keep, rank)
    base = read_base(data, layout)
    return Download(
        server_round=header.server_round,
        client=header.client,
        shared=header.trainable,
        adapter=_adapter(tensors, layout, factors, header.lora_alpha),
        since=header.since,
        changed=keep if header.changed else None,
        base_update=base.update,
        base_whole=base.whole,
        base_before=base.before,
        base_after=base.after,
        digest=header.digest,
    )


def decode_upload(
    data: bytes, schema: UploadSchema, rank: int, lora_alpha: float, *, server_round: int | None = None
) -> Upload:
    """The upload that `data` stands for, in float32, zero in what did not travel. Values may be non-finite.

    Memory is bounded by the layout and `rank`, the receiver's own, whatever the frame claims.

    Args:
        data: one whole message.
        schema: this end's; layout and value type must be those of the message.
        rank: the rank that the client was sent; the frame must have it.
        lora_alpha: what the client was sent; the frame must have it.
        server_round: the round to insist on; None: any.

    Raises:
        CodecError: anything does not add up.
    """
    layout, frame = schema.layout, detach_frame(data)
    header = read_header(frame, "upload", layout.digest, server_round)
    if header.rank != rank:
        raise CodecError(f"The frame has rank {header.rank}; expected {rank}, as the client was sent.")
    if header.lora_alpha != lora_alpha:
        raise CodecError(
            f"The frame has lora_alpha {header.lora_alpha}; expected {lora_alpha}, as the client was sent."
        )
    if not header.present <= set(schema.factors):
        raise CodecError(f"The upload carries {sorted(header.present)}; its adapter has {sorted(schema.factors)}.")
    if (header.value_type, header.sparse) != (schema.value_type, schema.sparse):
        raise CodecError(
            f"The upload is of {header.value_type} (sparse: {header.sparse}); expected {schema.value_type} "
            f"(sparse: {schema.sparse})."
        )
    size = bitmap_size(layout, rank) if header.has_mask else 0
    mask = _unpack_mask(frame[header.size : header.size + size], layout, rank) if header.has_mask else None
    kinds = [x for x in schema.factors if x in header.present]
    keep = _all_rows(layout, kinds, rank)
    if mask is not None:
        keep |= {(x, name): chosen for name, chosen in mask.items() for x in kinds}
    sizes = [int(keep[x, m.name].sum()) * m.width(x, rank) for m in layout.modules for x in kinds]
    sizes += [math.prod(shape) for _, shape in layout.head]
    values = _read(frame, header, layout, size, sizes)
    tensors = {key: np.zeros(shape, np.float32) for key, shape in _shapes(layout, schema.factors, rank).items()}
    _fill(tensors, values, layout, kinds, keep, rank)
    return Upload(
        server_round=header.server_round,
        client=header.client,
        shared=header.trainable,
        num_examples=header.num_examples,
        train_loss=header.train_loss,
        mask=mask,
        update=_adapter(tensors, layout, schema.factors, lora_alpha),
        base_update=read_base(data, layout).update,
        sparse=header.sparse,
    )


def frame_factors(data: bytes, layout: Layout) -> frozenset[Factor]:
    """The factors that a download's frame carries."""
    return read_header(detach_frame(data), "download", layout.digest).present


def _content(blocks: Sequence[FloatArray], layout: Layout, value_type: str, sparse: bool) -> bytes:
    """All values, or, behind a bitmap of entries, those of the factors that are not zero once they are of the value type."""
    kind = VALUE_TYPES[value_type]
    if not sparse:
        return kind.pack(blocks)
    factors = blocks[: len(blocks) - len(layout.head)]
    flat = np.concatenate([v.ravel() for v in factors]) if factors else np.empty(0, np.float32)
    sent = as_sent(flat, value_type) != 0
    return np.packbits(sent).tobytes() + kind.pack([flat[sent], *blocks[len(factors) :]])


def _read(data: bytes, header: Header, layout: Layout, bitmap: int, sizes: Sequence[int]) -> FloatArray:
    """The frame's values, one block after the other, those that did not travel in a sparse frame as zeros."""
    if not header.sparse:
        return read_values(data, header, bitmap, sizes)
    heads = list(sizes[len(sizes) - len(layout.head) :])
    entries = sum(sizes) - sum(heads)
    size = (entries + 7) // 8
    bits = np.unpackbits(np.frombuffer(data[header.size : header.size + size], np.uint8)).astype(np.bool_)
    if len(bits) < entries or bits[entries:].any():
        raise CodecError(f"The bitmap of entries is cut off, or has bits set beyond its {entries} entries.")
    sent = bits[:entries]
    held = int(sent.sum())
    values = read_values(data, header, size, [held, *heads])
    if not values[:held].all():
        raise CodecError("The sparse frame carries zeros; expected a value other than zero for each bit set.")
    full = np.zeros(sum(sizes), np.float32)
    full[:entries][sent] = values[:held]
    full[entries:] = values[held:]
    return full


def _blocks(adapter: Adapter, layout: Layout, kinds: Sequence[Factor], mask: Mask | None) -> list[FloatArray]:
    """Everything that travels, in the frame's order: (slices, width) blocks, then the head."""
    blocks = []
    for module in layout.modules:
        for factor in kinds:
            rows = adapter.factors[module.name].slices(factor)
            blocks.append(rows if mask is None else rows[mask[module.name]])
    return blocks + [adapter.head[name] for name, _ in layout.head]


def _changed_blocks(
    adapter: Adapter, layout: Layout, kinds: Sequence[Factor], changed: Mapping[Key, BoolArray]
) -> list[FloatArray]:
    """As `_blocks`, of what changed."""
    rows = [adapter.factors[m.name].slices(x)[changed[x, m.name]] for m in layout.modules for x in kinds]
    return rows + [adapter.head[name] if changed["head", name] else np.empty(0, np.float32) for name, _ in layout.head]


def _fill(
    tensors: Mapping[Key, FloatArray],
    values: FloatArray,
    layout: Layout,
    kinds: Sequence[Factor],
    keep: Mapping[Key, BoolArray],
    rank: int,
) -> None:
    """Writes the values into the rank slices and head tensors that `keep` names, the reverse of `_blocks`."""
    offset = 0
    for module in layout.modules:
        for factor in kinds:
            array, chosen = tensors[factor, module.name], keep[factor, module.name]
            rows = array.T if factor == "B" else array  # a view: B's columns too are written in place
            width = module.width(factor, rank)
            size = int(chosen.sum()) * width
            rows[chosen] = values[offset : offset + size].reshape(-1, width)
            offset += size
    for name, shape in layout.head:
        if keep["head", name]:
            size = math.prod(shape)
            tensors["head", name][...] = values[offset : offset + size].reshape(shape)
            offset += size


def _own(held: Adapter | None, needed: Sequence[Key], shapes: Mapping[Key, tuple[int, ...]]) -> dict[Key, FloatArray]:
    """Copies of what the receiver holds, for the tensors of which some part does not travel; empty arrays for the others."""
    own = {} if held is None else dict(held.tensors)
    tensors = {}
    for key, shape in shapes.items():
        kind, name = key
        if key not in needed:
            tensors[key] = np.empty(shape, np.float32)
            continue
        if key not in own:
            raise CodecError(f"{kind} of {name!r} does not travel, and none is held here.")
        if own[key].shape != shape:
            raise CodecError(f"What is held of {kind} of {name!r} is {own[key].shape}; expected {shape}.")
        tensors[key] = np.array(own[key], np.float32)
    return tensors


def _adapter(
    tensors: Mapping[Key, FloatArray], layout: Layout, factors: Sequence[Factor], lora_alpha: float
) -> Adapter:
    modules = {m.name: Factors(**{x: tensors[x, m.name] for x in factors}) for m in layout.modules}
    return Adapter(modules, lora_alpha, {name: tensors["head", name] for name, _ in layout.head})


def _shapes(layout: Layout, factors: Sequence[Factor], rank: int) -> dict[Key, tuple[int, ...]]:
    found: dict[Key, tuple[int, ...]] = {(x, m.name): m.shape(x, rank) for m in layout.modules for x in factors}
    return found | {("head", name): shape for name, shape in layout.head}


def _all_rows(layout: Layout, kinds: Sequence[Factor], rank: int) -> dict[Key, BoolArray]:
    """Every rank slice of the factors that travel, and the head."""
    every = np.ones(rank, np.bool_)
    found: dict[Key, BoolArray] = {(x, m.name): every for m in layout.modules for x in kinds}
    return {**found, **{("head", name): np.ones((), np.bool_) for name, _ in layout.head}}


def _bits(changed: Mapping[Key, BoolArray], layout: Layout, kinds: Sequence[Factor], rank: int) -> BoolArray:
    """One bit a (module, factor, rank slice) and head tensor, in the order of the values."""
    parts = [np.broadcast_to(changed[x, m.name], (rank,)) for m in layout.modules for x in kinds]
    return np.concatenate([*parts, [bool(changed["head", name]) for name, _ in layout.head]]).astype(np.bool_)


def _unpack_bits(bitmap: bytes, layout: Layout, kinds: Sequence[Factor], rank: int) -> dict[Key, BoolArray]:
    count = len(kinds) * rank * len(layout.modules)
    total = count + len(layout.head)
    bits = np.unpackbits(np.frombuffer(bitmap, np.uint8)).astype(np.bool_)
    if len(bits) < total or bits[total:].any():
        raise CodecError(f"The bitmap of changes is cut off, or has bits set beyond its {total}.")
    keys = [(x, m.name) for m in layout.modules for x in kinds]
    found: dict[Key, BoolArray] = dict(zip(keys, bits[:count].reshape(-1, rank), strict=True))
    return {**found, **{("head", n): np.asarray(b) for (n, _), b in zip(layout.head, bits[count:total], strict=True)}}


def _pack_mask(mask: Mask, layout: Layout, rank: int) -> bytes:
    names = [module.name for module in layout.modules]
    if mask.keys() != set(names):
        raise CodecError(f"The mask has modules {list(mask)}; expected {names}.")
    for name, keep in mask.items():
        if keep.shape != (rank,) or keep.dtype != np.bool_:
            raise CodecError(f"The mask of {name!r} is {keep.dtype} {keep.shape}; expected bool {(rank,)}.")
    return np.packbits(np.concatenate([mask[name] for name in names])).tobytes()


def _unpack_mask(bitmap: bytes, layout: Layout, rank: int) -> dict[str, BoolArray]:
    if len(bitmap) != bitmap_size(layout, rank):
        raise CodecError(f"The frame ends inside its bitmap, after {len(bitmap)} of {bitmap_size(layout, rank)} bytes.")
    count = len(layout.modules) * rank
    bits = np.unpackbits(np.frombuffer(bitmap, np.uint8)).astype(np.bool_)
    if bits[count:].any():
        raise CodecError(f"The bitmap has bits set beyond its {count} (module, rank) pairs.")
    rows = bits[:count].reshape(-1, rank)
    return {module.name: keep for module, keep in zip(layout.modules, rows, strict=True)}


def _checked_rank(adapter: Adapter, layout: Layout) -> int:
    """The adapter's rank, once all of it is found to fit the layout."""
    names = [module.name for module in layout.modules]
    if not names or adapter.factors.keys() != set(names):
        raise CodecError(f"The adapter has modules {list(adapter.factors)}; expected {names or 'at least one'}.")
    if adapter.head.keys() != {name for name, _ in layout.head}:
        raise CodecError(f"The adapter has head tensors {list(adapter.head)}; expected {list(dict(layout.head))}.")
    rank = adapter.rank
    for module in layout.modules:
        for factor in adapter.factors[module.name].kinds:
            found, shape = adapter.factors[module.name].get(factor).shape, module.shape(factor, rank)
            if found != shape:
                raise CodecError(f"Factor {factor} of {module.name!r} is {found}; expected {shape}.")
    for name, wanted in layout.head:
        if adapter.head[name].shape != wanted:
            raise CodecError(f"Head tensor {name!r} is {adapter.head[name].shape}; expected {wanted}.")
    return rank
