"""Replies that are valid and mean harm: whatever one client sends, the others' round is committed or nothing is touched."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc
import zlib
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_conformance import RANK, Cohort, federation, population

from lora_a2 import codec
from lora_a2.codec.base import read_base
from lora_a2.core.algebra import initial_adapter
from lora_a2.core.types import (
    BaseUpdate,
    ClientProfile,
    ClientState,
    Download,
    Factors,
    Layout,
    ModuleShape,
    ServerState,
    Upload,
    dense,
    moved_base,
)
from lora_a2.errors import CodecError, ReplyError
from lora_a2.federation.agreement import Federation
from lora_a2.federation.bounds import check_state
from lora_a2.federation.client import receive, upload_schema
from lora_a2.federation.records import RoundRecord
from lora_a2.federation.server import server_round
from lora_a2.methods import METHODS
from lora_a2.methods.base import Method
from lora_a2.system.text import plain

EXAMPLES = (5, 9, 2, 7, 4)
VALUES = (1e3, 1e6, -1e6, 1e20, 1e38, -3e38, 1e-45, float("inf"), float("nan"))
DTYPES = tuple(codec.VALUE_TYPES)


def filled(values: np.ndarray, value: float, alone: bool) -> np.ndarray:
    """`values` with `value` everywhere, or in one place."""
    result = values.copy()
    result[(0,) * values.ndim if alone else ...] = value
    return result


@dataclass
class Hostile(Cohort):
    """Client 0 sends one value everywhere, or in one place of each array, always in float32, whatever was agreed."""

    value: float = 0.0
    alone: bool = False

    def answer(self, profile: ClientProfile, data: bytes) -> bytes:
        if profile.id:
            return super().answer(profile, data)
        made = self.federation
        download, self.kept[profile.id] = receive(made, data, self.kept.get(profile.id, ClientState()))
        upload, schema = self.spoiled(self.change(profile, download)), upload_schema(made)
        try:
            return codec.encode(upload, schema)
        except CodecError:  # what the value type cannot hold is sent in one that can
            return codec.encode(upload, replace(schema, value_type=codec.EXACT))

    def spoiled(self, upload: Upload) -> Upload:
        def wrong(values: np.ndarray) -> np.ndarray:
            return filled(values, self.value, self.alone)

        update = upload.update
        factors = {
            name: Factors(wrong(f.A) if "A" in upload.shared else f.A, wrong(f.B) if "B" in upload.shared else f.B)
            for name, f in update.factors.items()
        }
        head = {name: wrong(values) for name, values in update.head.items()}
        base: BaseUpdate = {name: wrong(dense(change)) for name, change in upload.base_update.items()}
        return replace(upload, update=replace(update, factors=factors, head=head), base_update=base)


def made_for(method: Method, dtype: str) -> tuple[Federation, list[ClientProfile]]:
    return replace(federation(method), wire_dtype=dtype), population(method, EXAMPLES)


def rounds(
    made: Federation, profiles: list[ClientProfile], cohorts: list[Cohort]
) -> tuple[ServerState, list[RoundRecord | None]]:
    """A round with each cohort, whose clients keep what they have; None for a round that touched nothing."""
    state, records = ServerState(0, made.initial, 0), []
    for cohort in cohorts:
        cohort.kept = cohorts[0].kept
        before = state
        record = None
        try:
            state, record = server_round(made, state, profiles, cohort)
        except ReplyError:
            assert state is before
        records.append(record)
    return state, records


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_one_reply_never_ends_a_run(method: Method, dtype: str) -> None:
    """Of each hostile value, everywhere and in one place: the round goes on without it, or counts for little; so does the next."""
    for value in VALUES:
        for alone in (False, True):
            made, profiles = made_for(method, dtype)
            hostile = Hostile(made, 1, value=value, alone=alone, size=0.1)
            state, (first, second) = rounds(made, profiles, [hostile, Cohort(made, 2, size=0.1)])
            assert first is not None and second is not None, (value, alone)
            counted = {c.id for c in first.clients}
            assert counted == {1, 2, 3, 4} if abs(value) != 1e-45 and not abs(value) < 1e6 else counted >= {1, 2, 3, 4}
            assert len(second.clients) == 5, (value, second.refused)
            check_state(made, state, state, 0.0)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(METHODS)),
    st.sampled_from(DTYPES),
    st.floats(width=32),
    st.booleans(),
    st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=2, max_size=2),
    st.integers(0, 2**64 - 1),
    st.floats(),
)
def test_no_mask_number_or_value_ends_a_run(
    name: str, dtype: str, value: float, alone: bool, masks: list[list[bool]], examples: int, loss: float
) -> None:
    """Whatever is valid on the wire, hostile masks and prunings too."""

    class Forger(Hostile):
        def change(self, profile: ClientProfile, download: Download) -> Upload:
            honest = super().change(profile, download)
            if profile.id or made.method.sparse:
                return honest
            rank = download.adapter.rank
            mask = {n: np.array(m[:rank]) for n, m in zip(honest.update.factors, masks, strict=True)}
            return replace(honest, mask=mask, num_examples=max(1, examples), train_loss=loss)

    made, profiles = made_for(METHODS[name], dtype)
    cohorts: list[Cohort] = [Forger(made, 1, value=value, alone=alone, size=0.1), Cohort(made, 2, size=0.1)]
    _, (first, second) = rounds(made, profiles, cohorts)
    assert first is not None and {c.id for c in first.clients} >= {1, 2, 3, 4}
    assert second is not None and len(second.clients) >= 4
    assert all(reason == plain(reason, 400) for record in (first, second) for reason in record.refused.values())


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (np.linalg.LinAlgError("SVD did not converge"), "LinAlgError: SVD"),
        (OverflowError("too large"), "OverflowError"),
    ],
    ids=["LinAlgError", "OverflowError"],
)
def test_an_error_that_a_method_does_not_declare_ends_the_round_alone(error: Exception, said: str) -> None:
    def failing(*arguments: object) -> ServerState:
        raise error

    made, profiles = made_for(METHODS["flexlora"], "fp32")
    broken = replace(made, method=replace(made.method, reduce=failing))
    state = ServerState(0, made.initial, 0)
    with pytest.raises(ReplyError, match=said):
        server_round(broken, state, profiles, Cohort(made, 0))
    with pytest.raises(ReplyError, match=f"no download for client 0: {said}"):
        server_round(
            replace(made, method=replace(made.method, dispatch=failing)), state, profiles, lambda sent: list(sent)
        )
    assert len(server_round(made, state, profiles, Cohort(made, 0))[1].clients) == 5


def test_an_error_of_training_is_not_taken_for_one_of_replies() -> None:
    made, profiles = made_for(METHODS["fl-lora"], "fp32")

    def broken(downloads: object) -> list[tuple[ClientProfile, bytes]]:
        def train():  # type: ignore[no-untyped-def]
            raise ValueError("of the trainer")
            yield

        return train()  # type: ignore[no-any-return]

    with pytest.raises(ValueError, match="of the trainer"):
        server_round(made, ServerState(0, made.initial, 0), profiles, broken)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_state_that_does_not_fit_is_never_committed(method: Method) -> None:
    """Also where every reply passes: what a method makes of them is looked at once more."""
    for value, said in ((np.inf, "not finite"), (np.nan, "not finite"), (7e4, "overflow fp16|value of")):
        made, profiles = made_for(method, "fp16")

        def spoil(state: ServerState, reduced: object, step: object, wrong: float = value) -> ServerState:
            tensors = state.adapter.tensors.of(*state.adapter.kinds).map(lambda v: filled(v, wrong, True))
            return replace(state, adapter=state.adapter.with_tensors(tensors))

        with pytest.raises(ReplyError, match=said):
            server_round(
                replace(made, method=replace(method, server_step=spoil)),
                ServerState(0, made.initial, 0),
                profiles,
                Cohort(made, 0, size=0.1),
            )


# --- memory


BIG = Layout(tuple(ModuleShape(f"m{i}", 48, 32) for i in range(8)), (("weight", (2, 3)),))


def sealed(body: bytes) -> bytes:
    return body + struct.pack("<I", zlib.crc32(body))


def claimed(kind: str, rank: int, sparse: bool, length: int) -> bytes:
    """A frame of `length` zeros behind a header that claims a rank; signed, as whoever sends it can."""
    header = struct.pack(
        "<4sBB16sIIHBBBBdQd",
        *(b"LoA2", 1, ("download", "upload").index(kind), BIG.digest, 1, 0, rank, 3, 3, 0, 2 * sparse, 6.0),
        *((5, 0.5) if kind == "upload" else (0, 0.0)),
    )
    if kind == "download":
        header += struct.pack("<i16s", -1, bytes(16))
    return sealed(header + bytes(length))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.sampled_from(["download", "upload", "base"]),
    st.sampled_from([1, 3, 4, 100, 65535]),
    st.booleans(),
    st.sampled_from(["short", "fitting", "long"]),
)
def test_memory_is_bounded_by_what_both_ends_know(kind: str, rank: int, sparse: bool, length: str) -> None:
    """Whatever rank a message claims, and however well its length fits: by its own size, the layout and the server's rank."""
    initial = initial_adapter(BIG, RANK, 6.0, np.random.default_rng(0), {"weight": np.ones((2, 3), np.float32)})
    made = replace(federation(METHODS["flasc"]), layout=BIG, initial=initial)
    entries = rank * sum(m.d_in + m.d_out for m in BIG.modules)
    values = (entries + 7) // 8 + 24 if sparse else 4 * (entries + 6)
    size = {"short": 10, "fitting": values, "long": values + 10}[length]
    if kind == "base":
        forms = struct.pack("<8I", *[rank] * 8)
        frame = claimed("download", RANK, True, 100)
        whole = 4 * rank * 80 * 8 if rank < 1000 else 10
        data = sealed(
            struct.pack("<4sBBBQ16s16s", b"LoAB", 1, 0, 0, len(frame), bytes(16), bytes(16))
            + frame
            + forms
            + bytes(whole)
        )
    else:
        data = claimed(kind, rank, sparse, size)
    known = 4 * (RANK * sum(m.d_in + m.d_out for m in BIG.modules) + sum(m.d_in * m.d_out for m in BIG.modules))
    tracemalloc.start()
    try:
        with contextlib.suppress(CodecError):
            if kind == "base":
                moved_base({}, read_base(data, BIG).update)
            elif kind == "download":
                receive(made, data, ClientState())
            else:
                codec.decode_upload(data, codec.UploadSchema(BIG, "fp32", sparse), RANK, 6.0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(data) * (rank <= 100) + 2 * len(data) + 4 * known + 2**18


def test_28_MB_do_not_become_1_8_GB() -> None:
    initial = initial_adapter(BIG, RANK, 6.0, np.random.default_rng(0), {"weight": np.ones((2, 3), np.float32)})
    made = replace(federation(METHODS["flasc"]), layout=BIG, initial=initial)
    entries = 65535 * sum(m.d_in + m.d_out for m in BIG.modules)
    data = claimed("download", 65535, True, (entries + 7) // 8 + 24)
    tracemalloc.start()
    with pytest.raises(CodecError, match="rank 65535; expected at most 3"):
        receive(made, data, ClientState())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20
