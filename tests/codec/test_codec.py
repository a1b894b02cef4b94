"""Frames: round trips, exact sizes, and nothing but a CodecError for bytes that are not a valid message."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_a2 import codec
from lora_a2.codec import (
    VALUE_TYPES,
    DownloadSchema,
    UploadSchema,
    changed_size,
    upload_parameters,
    upload_size,
    whole_size,
)
from lora_a2.core.types import Adapter, BoolArray, Download, Factor, Factors, FloatArray, Layout, ModuleShape, Upload
from lora_a2.errors import CodecError

BOTH: frozenset[Factor] = frozenset({"A", "B"})
A: frozenset[Factor] = frozenset({"A"})
B: frozenset[Factor] = frozenset({"B"})
SUBSETS = st.sampled_from([frozenset[Factor](), A, B, BOTH])
OVERHEAD = 64
HOLDS = 20
LAYOUT = Layout((ModuleShape("x", 3, 5), ModuleShape("y", 7, 2)), (("w", (2, 3)), ("b", (2,))))


def encode_download(sent: Download, layout: Layout, dtype: str, factors: frozenset[Factor]) -> bytes:
    return codec.encode(sent, DownloadSchema(layout, dtype, factors))


def decode_download(
    data: bytes, layout: Layout, held: Adapter | None, factors: frozenset[Factor], dtype: str, **given: Any
) -> Download:
    return codec.decode_download(data, DownloadSchema(layout, dtype, factors), held, **given)


def encode_upload(sent: Upload, layout: Layout, dtype: str) -> bytes:
    return codec.encode(sent, UploadSchema(layout, dtype))


def decode_upload(data: bytes, layout: Layout, rank: int, lora_alpha: float, dtype: str, **given: Any) -> Upload:
    return codec.decode_upload(data, UploadSchema(layout, dtype), rank, lora_alpha, **given)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    sides = draw(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4))
    modules = tuple(ModuleShape(f"m{i}", d_out, d_in + 9) for i, (d_out, d_in) in enumerate(sides))
    shapes = draw(st.lists(st.lists(st.integers(0, 3), max_size=3).map(tuple), max_size=2))
    return Layout(modules, tuple((f"h{i}", shape) for i, shape in enumerate(shapes)))


def adapter(layout: Layout, rank: int, seed: int = 0) -> Adapter:
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> FloatArray:
        return rng.standard_normal(shape, np.float32)

    factors = {m.name: Factors(normal(rank, m.d_in), normal(m.d_out, rank)) for m in layout.modules}
    # Another order than the layout's: the layout's decides.
    return Adapter(dict(reversed(factors.items())), 16.5, {n: normal(*shape) for n, shape in layout.head})


def matrix(rows: list[list[int]]) -> FloatArray:
    return np.array(rows, np.float32)


def masked(update: Adapter, trainable: frozenset[Factor], mask: dict[str, BoolArray] | None) -> Adapter:
    """`update` with zeros where an upload has zeros."""
    factors = {}
    for name, f in update.factors.items():
        keep = np.float32(1) if mask is None else mask[name].astype(np.float32)[:, None]
        factors[name] = Factors(f.A * keep * ("A" in trainable), (f.B.T * keep * ("B" in trainable)).T)
    return replace(update, factors=factors)


def random_mask(layout: Layout, rank: int, seed: int) -> dict[str, BoolArray]:
    rng = np.random.default_rng(seed)
    return {m.name: rng.random(rank) < rng.random() for m in layout.modules}


def wire(values: FloatArray, dtype: str) -> FloatArray:
    """Values as they arrive; bfloat16 is rounded by PyTorch here."""
    if dtype == "bf16":
        rounded: FloatArray = torch.from_numpy(values).bfloat16().float().numpy()
        return rounded
    return values.astype(np.float16).astype(np.float32) if dtype == "fp16" else values


def assert_same(given: Adapter, expected: Adapter, dtype: str) -> None:
    assert given.lora_alpha == expected.lora_alpha
    assert given.factors.keys() == expected.factors.keys()
    assert given.head.keys() == expected.head.keys()
    pairs = [(given.factors[n].get(f), expected.factors[n].get(f)) for n in expected.factors for f in BOTH]
    for ours, theirs in pairs + [(given.head[n], expected.head[n]) for n in expected.head]:
        assert ours.dtype == np.float32
        assert ours.flags.c_contiguous and ours.flags.writeable
        assert ours.shape == theirs.shape
        assert np.array_equal(ours, wire(theirs, dtype))


@given(layouts(), st.integers(1, 9), SUBSETS, SUBSETS, st.sampled_from(sorted(VALUE_TYPES)), st.integers(0, 99))
@settings(deadline=None)
def test_downloads_come_back(
    layout: Layout, rank: int, trainable: frozenset[Factor], more: frozenset[Factor], dtype: str, seed: int
) -> None:
    factors = trainable | more
    sent = Download(seed + 1, seed, trainable, adapter(layout, rank, seed))
    data = encode_download(sent, layout, dtype, factors)
    assert data == encode_download(sent, layout, dtype, factors)
    assert len(data) == whole_size(layout, rank, factors, dtype)
    values = upload_parameters(layout, rank, None, factors)
    assert len(data) == OVERHEAD + HOLDS + values * (4 if dtype == "fp32" else 2)
    # The receiver's own copy of what does not travel: what a lossless wire would have carried.
    arrived = {n: Factors(wire(f.A, dtype), wire(f.B, dtype)) for n, f in sent.adapter.factors.items()}
    own = replace(sent.adapter, factors=arrived)
    held = None if factors == BOTH else own
    got = decode_download(data, layout, held, factors, dtype, server_round=seed + 1)
    assert (got.server_round, got.client, got.shared) == (seed + 1, seed, trainable)
    assert list(got.adapter.factors) == [m.name for m in layout.modules]
    assert_same(got.adapter, sent.adapter, dtype)


@given(layouts(), st.integers(1, 9), SUBSETS, st.booleans(), st.sampled_from(sorted(VALUE_TYPES)), st.integers(0, 99))
@settings(deadline=None)
def test_uploads_come_back(
    layout: Layout, rank: int, trainable: frozenset[Factor], selects: bool, dtype: str, seed: int
) -> None:
    mask = random_mask(layout, rank, seed) if selects else None
    update = masked(adapter(layout, rank, seed), trainable, mask)
    sent = Upload(seed + 1, seed, trainable, seed + 1, seed / 7, mask, update)
    data = encode_upload(sent, layout, dtype)
    assert data == encode_upload(sent, layout, dtype)
    assert len(data) == upload_size(layout, rank, mask, trainable, dtype)
    counts = None if mask is None else [int(mask[m.name].sum()) for m in layout.modules]
    assert len(data) == upload_size(layout, rank, counts, trainable, dtype)
    bitmap = (len(layout.modules) * rank + 7) // 8 if selects else 0
    values = upload_parameters(layout, rank, counts, trainable)
    assert len(data) == OVERHEAD + bitmap + values * (4 if dtype == "fp32" else 2)
    got = decode_upload(data, layout, rank, 16.5, dtype, server_round=seed + 1)
    assert replace(got, mask=None, update=update) == replace(sent, mask=None)
    assert (got.mask is None) == (mask is None)
    if got.mask is not None and mask is not None:
        assert {n: keep.tolist() for n, keep in got.mask.items()} == {n: keep.tolist() for n, keep in mask.items()}
    assert_same(got.update, update, dtype)


def test_the_frame_is_as_drawn() -> None:
    layout = Layout((ModuleShape("x", 1, 2), ModuleShape("y", 2, 1)))
    factors = {
        "x": Factors(matrix([[1, 2], [3, 4]]), matrix([[5, 6]])),
        "y": Factors(matrix([[7], [8]]), matrix([[9, 10], [11, 12]])),
    }
    mask = {"x": np.array([True, False]), "y": np.array([True, True])}
    upload = Upload(3, 4, BOTH, 5, 0.5, mask, Adapter(factors, 16.0))
    data = encode_upload(upload, layout, "fp32")
    head = b"LoA2\x01\x01" + layout.digest + struct.pack("<IIHBBBBdQd", 3, 4, 2, 3, 3, 0, 1, 16.0, 5, 0.5)
    body = head + bytes([0b10110000]) + struct.pack("<9f", 1, 2, 5, 7, 8, 9, 11, 10, 12)
    assert data == body + struct.pack("<I", zlib.crc32(body))


def upload(selects: bool = True, **changes: Any) -> Upload:
    keep = random_mask(LAYOUT, 3, 1) if selects else None
    return replace(Upload(5, 2, B, 40, 1.25, keep, masked(adapter(LAYOUT, 3), B, keep)), **changes)


def download(**changes: Any) -> Download:
    return replace(Download(5, 2, B, adapter(LAYOUT, 3)), **changes)


def decode(data: bytes, dtype: str = "fp32") -> Upload:
    return decode_upload(data, LAYOUT, 3, 16.5, dtype)


def decode_down(data: bytes) -> Download:
    return decode_download(data, LAYOUT, adapter(LAYOUT, 3), B, "fp32")


def changes(seed: int = 3) -> dict[tuple[str, str], BoolArray]:
    rng = np.random.default_rng(seed)
    rows = {(x, m.name): rng.random(3) < 0.5 for m in LAYOUT.modules for x in ("A", "B")}
    return {**rows, ("head", "w"): np.array(True), ("head", "b"): np.array(False)}


def reading(factors: frozenset[Factor], dtype: str) -> Callable[[bytes], object]:
    return lambda data: decode_download(data, LAYOUT, adapter(LAYOUT, 3), factors, dtype)


FRAMES: list[tuple[bytes, Callable[[bytes], object]]] = [
    (encode_upload(upload(), LAYOUT, "fp16"), lambda data: decode(data, "fp16")),
    (encode_upload(upload(selects=False), LAYOUT, "fp32"), decode),
    (encode_download(download(), LAYOUT, "fp16", B), reading(B, "fp16")),
    (encode_download(download(), LAYOUT, "fp32", BOTH), reading(BOTH, "fp32")),
    (encode_download(download(since=2, changed=changes()), LAYOUT, "fp32", BOTH), reading(BOTH, "fp32")),
]


@pytest.mark.parametrize(("data", "read"), FRAMES)
def test_every_truncation_extension_and_flipped_bit_is_a_codec_error(
    data: bytes, read: Callable[[bytes], object]
) -> None:
    read(data)
    damaged = [data[:length] for length in range(len(data))] + [data + b"\0", data + data]
    for position in range(len(data)):
        for bit in range(8):
            damaged.append(data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :])
    assert len(damaged) == 9 * len(data) + 2
    for wrong in damaged:
        with pytest.raises(CodecError):
            read(wrong)


def sealed(body: bytes) -> bytes:
    return body + struct.pack("<I", zlib.crc32(body))


@given(st.sampled_from(FRAMES), st.lists(st.tuples(st.integers(0, 80), st.integers(0, 255)), min_size=1, max_size=3))
@settings(deadline=None, max_examples=400)
def test_a_forged_header_with_a_right_checksum_is_refused_or_means_what_it_says(
    frame: tuple[bytes, Callable[[bytes], object]], edits: list[tuple[int, int]]
) -> None:
    data, read = frame
    body = bytearray(data[:-4])
    for position, value in edits:
        body[position % len(body)] = value
    forged = sealed(bytes(body))
    try:
        got = read(forged)
    except CodecError:
        return
    # What was accepted is encoded alike; values are left out, since a signalling NaN may come back quiet.
    dtype = sorted(VALUE_TYPES, key=lambda name: VALUE_TYPES[name].code)[forged[34]]
    if isinstance(got, Upload):
        again = encode_upload(got, LAYOUT, dtype)
    else:
        assert isinstance(got, Download)
        again = encode_download(got, LAYOUT, dtype, B if forged[33] == 2 else BOTH)
    size = 60 if isinstance(got, Upload) else 80
    assert again[:size] == forged[:size]
    assert len(again) == len(forged)


@given(st.binary(max_size=300), st.booleans())
@settings(deadline=None)
def test_random_bytes_are_codec_errors(data: bytes, dressed: bool) -> None:
    if dressed:
        data = sealed(b"LoA2\x01\x01" + LAYOUT.digest + data)
    for read in (decode, decode_down):
        with pytest.raises(CodecError):
            read(data)


def test_a_claimed_rank_allocates_nothing() -> None:
    layout = Layout(tuple(ModuleShape(f"m{i}", 4096, 1024) for i in range(64)))
    header = struct.pack("<4sBB16sIIHBBBBdQd", b"LoA2", 1, 0, layout.digest, 1, 1, 65535, 3, 3, 0, 0, 16.0, 0, 0.0)
    header += struct.pack("<i16s", -1, bytes(16))
    masked_header = struct.pack("<4sBB16sIIHBBBBdQd", b"LoA2", 1, 1, layout.digest, 1, 1, 60000, 3, 3, 0, 1, 16.0, 1, 0)
    tracemalloc.start()
    try:
        with pytest.raises(CodecError, match="header asks for"):
            decode_download(sealed(header), layout, None, BOTH, "fp32")
        with pytest.raises(CodecError, match="ends inside its bitmap"):
            decode_upload(sealed(masked_header), layout, 60000, 16.0, "fp32")
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("offset", "fmt", "value", "said"),
    [
        (0, "4s", b"ELF!", "starts with"),
        (4, "B", 2, "version 2; expected 1"),
        (5, "B", 0, "kind 'download'; expected 'upload'"),
        (5, "B", 9, "kind 9"),
        (6, "B", 0, "layout digest"),
        (22, "I", 0, "server round 0"),
        (22, "I", 6, "server round 6; expected 5"),
        (30, "H", 0, "rank 0"),
        (30, "H", 4, "rank 4; expected 3"),
        (32, "B", 1, "carries {B}, but trained {A}"),
        (32, "B", 10, "factor bits 0x0a"),
        (34, "B", 7, "value type 7"),
        (35, "B", 8, "flags 0x08"),
        (35, "B", 5, "several bitmaps"),
        (35, "B", 4, "bitmap of a download"),
        (36, "d", float("nan"), "lora_alpha nan"),
        (36, "d", float("inf"), "lora_alpha inf"),
        (36, "d", -1.0, "lora_alpha -1"),
        (36, "d", 8.0, "lora_alpha 8.0; expected 16.5"),
        (44, "Q", 0, "num_examples 0"),
        (60, "B", 0xFF, "bits set beyond its 6"),
    ],
)
def test_wrong_fields_are_named(offset: int, fmt: str, value: Any, said: str) -> None:
    body = bytearray(encode_upload(upload(), LAYOUT, "fp32")[:-4])
    struct.pack_into(f"<{fmt}", body, offset, value)
    with pytest.raises(CodecError, match=said):
        decode_upload(sealed(bytes(body)), LAYOUT, 3, 16.5, "fp32", server_round=5)


def test_downloads_that_do_not_add_up_are_refused() -> None:
    data = encode_download(download(), LAYOUT, "fp32", B)
    for offset, fmt, value in [(35, "B", 1), (44, "Q", 1), (52, "d", 1.0), (52, "d", float("nan")), (32, "B", 3)]:
        body = bytearray(data[:-4])
        struct.pack_into(f"<{fmt}", body, offset, value)
        with pytest.raises(CodecError, match="The download"):
            decode_down(sealed(bytes(body)))
    with pytest.raises(CodecError, match="rank 3; expected at most 2"):
        codec.read_address(data, LAYOUT, 2)
    with pytest.raises(CodecError, match="none is held here"):
        decode_download(data, LAYOUT, None, B, "fp32")
    with pytest.raises(CodecError, match=r"held of A .* expected \(3, 5\)"):
        decode_download(data, LAYOUT, adapter(LAYOUT, 2), B, "fp32")
    with pytest.raises(CodecError, match="what is trained must travel"):
        encode_download(download(shared=BOTH), LAYOUT, "fp32", B)
    for factors, dtype in ((BOTH, "fp32"), (B, "fp16")):
        with pytest.raises(CodecError, match="The download carries"):
            decode_download(data, LAYOUT, adapter(LAYOUT, 3), factors, dtype)
    for since in (-2, 5, 6):
        with pytest.raises(CodecError, match="builds on round"):
            encode_download(download(since=since, changed=changes()), LAYOUT, "fp32", BOTH)
    with pytest.raises(CodecError, match="builds on round 3, and says of what is changed: False"):
        encode_download(download(since=3), LAYOUT, "fp32", BOTH)


@given(layouts(), st.integers(1, 9), SUBSETS, st.sampled_from(sorted(VALUE_TYPES)), st.integers(0, 99))
@settings(deadline=None)
def test_what_changed_is_put_into_what_is_held(
    layout: Layout, rank: int, factors: frozenset[Factor], dtype: str, seed: int
) -> None:
    """The changed rank slices and head tensors are the sender's, all others the receiver's, who may hold more ranks."""
    rng = np.random.default_rng(seed)
    changed: dict[tuple[str, str], BoolArray] = {
        (x, m.name): rng.random(rank) < 0.5 for m in layout.modules for x in sorted(factors)
    }
    changed |= {("head", name): np.array(rng.random() < 0.5) for name, _ in layout.head}
    new, held = adapter(layout, rank, seed), adapter(layout, rank + 2, seed + 1)
    sent = Download(9, 1, frozenset(), new, 4, changed, digest=bytes(range(16)))
    data = encode_download(sent, layout, dtype, factors)
    got = decode_download(data, layout, held, factors, dtype)
    carried = 0
    for (kind, name), values in new.tensors.items():
        keep = changed.get((kind, name), np.zeros((), np.bool_))
        keep = np.broadcast_to(
            keep[None, :] if kind == "B" and keep.ndim else keep[:, None] if keep.ndim else keep, values.shape
        )
        own = held.tensors[kind, name]
        own = own if kind == "head" else own[:, :rank] if kind == "B" else own[:rank]
        np.testing.assert_array_equal(got.adapter.tensors[kind, name], np.where(keep, wire(values, dtype), own))
        carried += int(keep.sum())
    assert len(data) == changed_size(layout, rank, factors, carried, dtype)
    assert (got.since, got.digest) == (4, bytes(range(16)))
    assert codec.read_address(data, layout) == (9, 1, 4, rank)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"server_round": 0}, "server round 0"),
        ({"server_round": 2**32}, "does not fit"),
        ({"client": -1}, "does not fit"),
        ({"num_examples": 0}, "num_examples 0"),
        ({"mask": {"x": np.ones(3, np.bool_)}}, "mask has modules"),
        ({"mask": {"x": np.ones(3, np.bool_), "y": np.ones(4, np.bool_)}}, "mask of 'y'"),
        ({"mask": {"x": np.ones(3, np.bool_), "y": np.ones(3, np.int64)}}, "mask of 'y' is int64"),
        ({"update": replace(adapter(LAYOUT, 3), head={})}, "head tensors"),
        ({"update": replace(adapter(LAYOUT, 3), lora_alpha=float("nan"))}, "lora_alpha nan"),
        ({"update": Adapter({}, 16.0)}, "adapter has modules"),
    ],
)
def test_what_cannot_be_sent_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(CodecError, match=said):
        encode_upload(upload(**changes), LAYOUT, "fp32")


def test_an_adapter_of_another_shape_is_refused() -> None:
    good = adapter(LAYOUT, 3)
    other = Layout((ModuleShape("x", 4, 5), LAYOUT.modules[1]), LAYOUT.head)
    with pytest.raises(CodecError, match=r"Factor B of 'x' is \(3, 3\); expected \(4, 3\)"):
        encode_download(download(), other, "fp32", BOTH)
    wrong = replace(good, factors={**good.factors, "y": Factors(good.factors["y"].A, good.factors["y"].B.T)})
    with pytest.raises(CodecError, match=r"Factor B of 'y' is \(3, 7\); expected \(7, 3\)"):
        encode_download(download(adapter=wrong), LAYOUT, "fp32", BOTH)
    with pytest.raises(CodecError, match="Head tensor 'w'"):
        encode_download(
            download(adapter=replace(good, head={**good.head, "w": good.head["w"].T})), LAYOUT, "fp32", BOTH
        )
    with pytest.raises(CodecError, match="at least one"):
        encode_download(download(adapter=Adapter({}, 16.0)), Layout(()), "fp32", BOTH)


def test_fp16_keeps_the_relative_error_and_never_overflows() -> None:
    layout = Layout((ModuleShape("x", 4000, 3),))
    values = np.float32(10) ** np.random.default_rng(0).uniform(-4, 4.8, (4000, 2)).astype(np.float32)
    update = Adapter({"x": Factors(np.zeros((2, 3), np.float32), values)}, 16.0)
    sent = Upload(1, 0, B, 1, 0.0, None, update)
    got = decode_upload(encode_upload(sent, layout, "fp16"), layout, 2, 16.0, "fp16").update.factors["x"].B
    assert np.all(np.abs(got - values) <= 2.0**-11 * values)
    values[7, 1] = 65520.0
    with pytest.raises(CodecError, match=r"1 of 8000 values overflow fp16, the largest is 65520: use fp32"):
        encode_upload(sent, layout, "fp16")
    encode_upload(sent, layout, "fp32")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40))
def test_bf16_is_rounded_as_pytorch_rounds(patterns: list[int]) -> None:
    """Over all bit patterns: subnormals, ties and what a carry does to the exponent; what overflows is refused."""
    values = np.array(patterns, np.uint32).view(np.float32)
    expected = wire(values, "bf16")
    fits = codec.fits(values, "bf16")
    assert fits == (not (np.isinf(expected) & np.isfinite(values)).any())
    if fits:
        np.testing.assert_array_equal(codec.as_sent(values, "bf16"), expected)


def test_bf16_rounds_ties_to_even_and_never_overflows() -> None:
    ties = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0xBF808000, 0x007F8000], np.uint32).view(np.float32)
    rounded = codec.as_sent(ties, "bf16").view(np.uint32)
    assert rounded.tolist() == [0x3F800000, 0x3F820000, 0x3F810000, 0xBF800000, 0x00800000]
    most = np.array([0x7F7F0000, 0x7F7F7FFF], np.uint32).view(
        np.float32
    )  # 3.39e38, and the largest that is rounded to it
    assert (codec.as_sent(most, "bf16") == most[0]).all()
    with pytest.raises(CodecError, match=r"1 of 1 values overflow bf16, the largest is 3.39618e\+38: use fp32"):
        VALUE_TYPES["bf16"].pack([np.array([0x7F7F8000], np.uint32).view(np.float32)])
    loud = np.array([0x7F800001, 0xFFFFFFFF], np.uint32).view(np.float32)
    assert np.isnan(codec.as_sent(loud, "bf16")).all()


@pytest.mark.parametrize("dtype", sorted(VALUE_TYPES))
def test_non_finite_values_travel_for_the_screening_to_see(dtype: str) -> None:
    sent = upload(selects=False, train_loss=float("nan"))
    sent.update.factors["x"].B[0] = [np.nan, np.inf, -np.inf]
    got = decode(encode_upload(sent, LAYOUT, dtype), dtype)
    assert np.array_equal(got.update.factors["x"].B[0], [np.nan, np.inf, -np.inf], equal_nan=True)
    assert np.isnan(got.train_loss)
