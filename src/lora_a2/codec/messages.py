"""Downloads and uploads to frames and back (the format is drawn in `codec/__init__.py`)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from lora_a2.codec.frame import HEADER_SIZE, Header, ValueType, as_sent, read_header, read_values, write_frame
from lora_a2.codec.sizes import bitmap_size, download_parameters, upload_parameters
from lora_a2.core.types import (
    FACTORS,
    Adapter,
    BoolArray,
    Download,
    Factor,
    Factors,
    FloatArray,
    Layout,
    Mask,
    ModuleShape,
    Upload,
)
from lora_a2.errors import CodecError


def encode_download(
    download: Download, layout: Layout, dtype: ValueType, factors: frozenset[Factor], *, sparse: bool = False
) -> bytes:
    """The frame of `download`; only `factors` travel, the receiver derives the other from the seed.

    In a sparse frame entries of A and B that are zero do not travel.

    Raises:
        CodecError: the adapter does not fit `layout`, a trained factor does not travel, a number does not fit its
            field, or a value overflows fp16.
    """
    adapter = download.adapter
    header = Header(
        kind="download",
        layout_digest=layout.digest,
        server_round=download.server_round,
        client=download.client,
        rank=_checked_rank(adapter, layout),
        trainable=download.trainable,
        present=factors,
        value_type=dtype,
        has_mask=False,
        lora_alpha=adapter.lora_alpha,
        sparse=sparse,
    )
    return _write(header, b"", _wire_values(adapter, layout, factors, None), layout)


def encode_upload(upload: Upload, layout: Layout, dtype: ValueType, *, sparse: bool = False) -> bytes:
    """The frame of `upload`: the slices of the trained factors that its mask selects (None: all), and the head.

    What `update` holds outside of them does not travel; by `Upload`'s contract it is zero. In a sparse frame, which goes
    without a mask, entries of A and B that are zero do not travel.

    Raises:
        CodecError: update or mask do not fit `layout`, a number does not fit its field, or a value overflows fp16.
    """
    update, mask = upload.update, upload.mask
    header = Header(
        kind="upload",
        layout_digest=layout.digest,
        server_round=upload.server_round,
        client=upload.client,
        rank=_checked_rank(update, layout),
        trainable=upload.trainable,
        present=upload.trainable,
        value_type=dtype,
        has_mask=mask is not None,
        lora_alpha=update.lora_alpha,
        num_examples=upload.num_examples,
        train_loss=upload.train_loss,
        sparse=sparse,
    )
    bitmap = b"" if mask is None else _pack_mask(mask, layout, header.rank)
    return _write(header, bitmap, _wire_values(update, layout, upload.trainable, mask), layout)


def decode_download(
    data: bytes,
    layout: Layout,
    frozen: Adapter | None,
    *,
    max_rank: int | None = None,
    server_round: int | None = None,
) -> Download:
    """The download that `data` stands for, in float32 whatever the value type.

    Args:
        data: one whole frame.
        layout: this end's layout; the frame must have its digest.
        frozen: supplies the factors that do not travel, at the frame's rank; may be None where both do.
        max_rank: the largest rank to accept; None: any.
        server_round: the round to insist on; None: any.

    Raises:
        CodecError: anything does not add up.
    """
    header = read_header(data, "download", layout.digest, server_round)
    rank = header.rank
    if max_rank is not None and rank > max_rank:
        raise CodecError(f"The frame has rank {rank}; expected at most {max_rank}.")
    values = _read(data, header, layout, 0, download_parameters(layout, rank, header.present))

    def room(module: ModuleShape, factor: Factor) -> FloatArray:
        if factor in header.present:
            return np.empty(_shape(module, factor, rank), np.float32)
        return _frozen(frozen, module, factor, rank)

    factors = {m.name: Factors(A=room(m, "A"), B=room(m, "B")) for m in layout.modules}
    head = _unpack_values(values, layout, factors, header.present, None)
    adapter = Adapter(factors, header.lora_alpha, head)
    return Download(header.server_round, header.client, header.trainable, adapter)


def decode_upload(
    data: bytes, layout: Layout, rank: int, lora_alpha: float, *, server_round: int | None = None
) -> Upload:
    """The upload that `data` stands for, in float32, zero in what did not travel. Values may be non-finite.

    Memory is bounded by `layout` and `rank`, the receiver's own, whatever the frame claims.

    Args:
        data: one whole frame.
        layout: this end's layout; the frame must have its digest.
        rank: the rank that the client was sent; the frame must have it.
        lora_alpha: what the client was sent; the frame must have it.
        server_round: the round to insist on; None: any.

    Raises:
        CodecError: anything does not add up.
    """
    header = read_header(data, "upload", layout.digest, server_round)
    if header.rank != rank:
        raise CodecError(f"The frame has rank {header.rank}; expected {rank}, as the client was sent.")
    if header.lora_alpha != lora_alpha:
        raise CodecError(
            f"The frame has lora_alpha {header.lora_alpha}; expected {lora_alpha}, as the client was sent."
        )
    size = bitmap_size(layout, rank) if header.has_mask else 0
    mask = _unpack_mask(data[HEADER_SIZE : HEADER_SIZE + size], layout, rank) if header.has_mask else None
    values = _read(data, header, layout, size, upload_parameters(layout, rank, mask, header.present))

    def zeros(module: ModuleShape, factor: Factor) -> FloatArray:
        return np.zeros(_shape(module, factor, rank), np.float32)

    factors = {m.name: Factors(A=zeros(m, "A"), B=zeros(m, "B")) for m in layout.modules}
    head = _unpack_values(values, layout, factors, header.present, mask)
    return Upload(
        server_round=header.server_round,
        client=header.client,
        trainable=header.trainable,
        num_examples=header.num_examples,
        train_loss=header.train_loss,
        mask=mask,
        update=Adapter(factors, lora_alpha, head),
    )


def frame_factors(data: bytes, layout: Layout) -> frozenset[Factor]:
    """The factors that a download's frame carries."""
    return read_header(data, "download", layout.digest).present


def _write(header: Header, bitmap: bytes, values: list[FloatArray], layout: Layout) -> bytes:
    """The frame of all `values`, or of those that are not zero once cast to the value type."""
    if not header.sparse:
        return write_frame(header, bitmap, values)
    blocks = values[: len(values) - len(layout.head)]
    flat = np.concatenate([v.ravel() for v in blocks]) if blocks else np.empty(0, np.float32)
    sent = as_sent(flat, header.value_type) != 0
    return write_frame(header, np.packbits(sent).tobytes(), [flat[sent], *values[len(blocks) :]])


def _read(data: bytes, header: Header, layout: Layout, bitmap: int, count: int) -> FloatArray:
    """The frame's `count` values (count,), those that did not travel in a sparse frame as zeros."""
    if not header.sparse:
        return read_values(data, header, bitmap, count)
    entries = count - sum(math.prod(shape) for _, shape in layout.head)
    size = (entries + 7) // 8
    bits = np.unpackbits(np.frombuffer(data[HEADER_SIZE : HEADER_SIZE + size], np.uint8)).astype(np.bool_)
    if len(bits) < entries or bits[entries:].any():
        raise CodecError(f"The bitmap of entries is cut off, or has bits set beyond its {entries} entries.")
    sent = bits[:entries]
    held = int(sent.sum())
    values = read_values(data, header, size, held + count - entries)
    if not values[:held].all():
        raise CodecError("The sparse frame carries zeros; expected a value other than zero for each bit set.")
    full = np.zeros(count, np.float32)
    full[:entries][sent] = values[:held]
    full[entries:] = values[held:]
    return full


def _wire_values(adapter: Adapter, layout: Layout, present: frozenset[Factor], mask: Mask | None) -> list[FloatArray]:
    """Everything that travels, in the frame's order: (slices, width) blocks, then the head."""
    blocks = []
    for module in layout.modules:
        for factor in FACTORS:
            if factor in present:
                rows = adapter.factors[module.name].slices(factor)
                blocks.append(rows if mask is None else rows[mask[module.name]])
    return blocks + [adapter.head[name] for name, _ in layout.head]


def _unpack_values(
    values: FloatArray,
    layout: Layout,
    factors: Mapping[str, Factors],
    present: frozenset[Factor],
    mask: Mask | None,
) -> dict[str, FloatArray]:
    """Writes the values of the `present` factors into `factors`, the reverse of `_wire_values`; returns the head."""
    offset = 0
    for module in layout.modules:
        for factor in FACTORS:
            if factor not in present:
                continue
            rows = factors[module.name].slices(factor)  # a view: B's columns too are written in place
            keep = np.ones(len(rows), np.bool_) if mask is None else mask[module.name]
            size = int(keep.sum()) * module.width(factor)
            rows[keep] = values[offset : offset + size].reshape(-1, module.width(factor))
            offset += size
    head = {}
    for name, shape in layout.head:
        size = math.prod(shape)
        head[name] = values[offset : offset + size].reshape(shape).copy()
        offset += size
    return head


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


def _shape(module: ModuleShape, factor: Factor, rank: int) -> tuple[int, int]:
    return (rank, module.d_in) if factor == "A" else (module.d_out, rank)


def _frozen(frozen: Adapter | None, module: ModuleShape, factor: Factor, rank: int) -> FloatArray:
    if frozen is None or module.name not in frozen.factors:
        raise CodecError(f"Factor {factor} of {module.name!r} does not travel, and no frozen one was given.")
    values, shape = frozen.factors[module.name].get(factor), _shape(module, factor, rank)
    if values.shape != shape:
        raise CodecError(f"The frozen factor {factor} of {module.name!r} is {values.shape}; expected {shape}.")
    return values


def _checked_rank(adapter: Adapter, layout: Layout) -> int:
    """The adapter's rank, once all of it is found to fit the layout."""
    names = [module.name for module in layout.modules]
    if not names or adapter.factors.keys() != set(names):
        raise CodecError(f"The adapter has modules {list(adapter.factors)}; expected {names or 'at least one'}.")
    if adapter.head.keys() != {name for name, _ in layout.head}:
        raise CodecError(f"The adapter has head tensors {list(adapter.head)}; expected {list(dict(layout.head))}.")
    rank = adapter.rank
    for module in layout.modules:
        for factor in FACTORS:
            found, shape = adapter.factors[module.name].get(factor).shape, _shape(module, factor, rank)
            if found != shape:
                raise CodecError(f"Factor {factor} of {module.name!r} is {found}; expected {shape}.")
    for name, wanted in layout.head:
        if adapter.head[name].shape != wanted:
            raise CodecError(f"Head tensor {name!r} is {adapter.head[name].shape}; expected {wanted}.")
    return rank
