"""Sparse frames and changes of base weights: round trips, sizes, and nothing but a CodecError for anything else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_a2 import codec
from lora_a2.codec import DownloadSchema, UploadSchema
from lora_a2.codec.base import BaseMessage, attach_base, detach_frame, read_base
from lora_a2.core.algebra import initial_adapter
from lora_a2.core.types import Adapter, BaseUpdate, Download, Factors, Layout, ModuleShape, Upload
from lora_a2.errors import CodecError

LAYOUT = Layout((ModuleShape("x", 3, 5), ModuleShape("y", 7, 2)), (("head", (2, 3)),))
BOTH = frozenset({"A", "B"})
FRAME = b"any frame"


def sparse_adapter(share: float, seed: int) -> Adapter:
    rng = np.random.default_rng(seed)

    def thin(values: np.ndarray) -> np.ndarray:
        return np.where(rng.random(values.shape) < share, rng.standard_normal(values.shape, np.float32), np.float32(0))

    start = initial_adapter(LAYOUT, 2, 16.0, rng, {"head": np.zeros((2, 3), np.float32)})
    return replace(start, factors={n: Factors(thin(f.A), thin(f.B)) for n, f in start.factors.items()})


def change(seed: int) -> BaseUpdate:
    rng = np.random.default_rng(seed)
    return {
        "x.weight": rng.standard_normal((3, 5), np.float32),
        "y.weight": Factors(rng.standard_normal((2, 2), np.float32), rng.standard_normal((7, 2), np.float32)),
    }


def same(one: Adapter, other: Adapter) -> bool:
    pairs = [(f.get(x), other.factors[n].get(x)) for n, f in one.factors.items() for x in ("A", "B")]
    return all(np.array_equal(a, b) for a, b in [*pairs, (one.head["head"], other.head["head"])])


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 1), st.integers(0, 99))
def test_sparse_frames_come_back(share: float, seed: int) -> None:
    adapter = sparse_adapter(share, seed)
    upload = Upload(1, 2, BOTH, 3, 0.5, None, adapter)
    data = codec.encode(upload, UploadSchema(LAYOUT, "fp32", sparse=True))
    assert same(codec.decode_upload(data, UploadSchema(LAYOUT, "fp32", sparse=True), 2, 16.0).update, adapter)
    left_out = codec.zero_entries(adapter, BOTH)
    assert len(data) == codec.upload_size(LAYOUT, 2, None, BOTH, "fp32") - 4 * left_out + 5
    schema = DownloadSchema(LAYOUT, "fp32", BOTH, sparse=True)
    down = codec.encode(Download(1, 2, BOTH, adapter), schema)
    assert same(codec.decode_download(down, schema, None).adapter, adapter)


def test_a_value_that_vanishes_in_fp16_does_not_travel() -> None:
    adapter = sparse_adapter(0, 0)
    adapter.factors["x"].A[0, 0] = 1e-12
    schema = UploadSchema(LAYOUT, "fp16", sparse=True)
    data = codec.encode(Upload(1, 2, BOTH, 3, 0.5, None, adapter), schema)
    assert not codec.decode_upload(data, schema, 2, 16.0).update.factors["x"].A.any()


@pytest.mark.parametrize("dtype", sorted(codec.VALUE_TYPES))
@pytest.mark.parametrize("whole", [False, True])
def test_a_change_of_base_weights_comes_back(dtype: str, whole: bool) -> None:
    update = change(0)
    data = attach_base(FRAME, BaseMessage(update, whole), LAYOUT, dtype)
    assert detach_frame(data) == FRAME
    assert len(data) == len(FRAME) + codec.base_size(codec.base_parameters(update), LAYOUT, dtype)
    found = read_base(data, LAYOUT)
    assert found.whole == whole
    tolerance = {"fp32": 1e-6, "fp16": 1e-2}.get(dtype, 3e-2)
    for name, value in update.items():
        got = found.update[name]
        if isinstance(value, Factors):
            assert isinstance(got, Factors)
            np.testing.assert_allclose(got.A, value.A, atol=tolerance)
            np.testing.assert_allclose(got.B, value.B, atol=tolerance)
        else:
            np.testing.assert_allclose(got, value, atol=tolerance)  # type: ignore[arg-type]


def test_a_frame_alone_changes_nothing() -> None:
    assert attach_base(FRAME, BaseMessage({}), LAYOUT, "fp32") == FRAME
    assert detach_frame(FRAME) == FRAME
    assert not read_base(FRAME, LAYOUT).update


@pytest.mark.parametrize(
    "update",
    [
        {"z.weight": np.zeros((3, 5), np.float32)},
        {"x.weight": np.zeros((5, 3), np.float32)},
        {"x.weight": Factors(np.zeros((2, 5), np.float32), np.zeros((3, 1), np.float32))},
    ],
)
def test_a_change_that_does_not_fit_is_refused(update: BaseUpdate) -> None:
    with pytest.raises(CodecError):
        attach_base(FRAME, BaseMessage(update), LAYOUT, "fp32")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damage_is_a_codec_error(data: st.DataObject) -> None:
    """Any byte changed, or the message cut anywhere."""
    upload = Upload(1, 2, BOTH, 3, 0.5, None, sparse_adapter(0.5, 0), change(0))
    schema = UploadSchema(LAYOUT, "fp32", sparse=True)
    message = codec.encode(upload, schema)
    place = data.draw(st.integers(0, len(message) - 1))
    flipped = bytearray(message)
    flipped[place] ^= data.draw(st.integers(1, 255))
    for damaged in (bytes(flipped), message[:place]):
        with pytest.raises(CodecError):
            codec.decode_upload(damaged, schema, 2, 16.0)
