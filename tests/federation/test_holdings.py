"""Who holds what: after every download a client holds, bit for bit, what the server thinks, whatever happened before.

The clients keep what they hold themselves here, as nodes do; the simulator's short cut is compared with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_conformance import Cohort, federation, population

from lora_a2 import codec
from lora_a2.core.types import EVERYTHING, FROM_SEED, ClientProfile, ClientState, Factors, ServerState
from lora_a2.errors import CodecError, LostState, ReplyError
from lora_a2.federation.agreement import Federation
from lora_a2.federation.client import upload_schema
from lora_a2.federation.exchange import Rejected
from lora_a2.federation.holdings import Outbox, as_held, base_id, digest, rank_of, receive, simulated, start
from lora_a2.federation.server import server_round
from lora_a2.methods import METHODS
from lora_a2.methods.base import Method

EXAMPLES = [5, 9, 2, 7]
ALL = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


@dataclass
class Nodes(Cohort):
    """Clients of which some drop their reply after they kept their state, or lose what they kept."""

    dropping: frozenset[int] = frozenset()
    earlier: dict[int, list[ClientState]] = field(default_factory=dict)

    def __call__(  # type: ignore[override]
        self, downloads: Sequence[tuple[ClientProfile, bytes]]
    ) -> list[tuple[ClientProfile, bytes | Rejected]]:
        self.seen = {}
        answers: list[tuple[ClientProfile, bytes | Rejected]] = []
        for profile, data in downloads:
            try:
                download, state = receive(self.federation, data, self.before(profile.id, data))
            except LostState as error:
                answers.append((profile, Rejected(str(error), lost=True)))
                continue
            self.earlier[profile.id] = [*self.earlier.get(profile.id, [])[-1:], state]
            self.kept[profile.id] = state
            upload = self.change(profile, download)
            if profile.id not in self.dropping:
                self.seen[profile.id] = download, upload
                answers.append((profile, codec.encode(upload, upload_schema(self.federation))))
        return answers

    def before(self, client: int, data: bytes) -> ClientState:
        """The last state of a round before the download's, of the two that are kept."""
        number = codec.read_address(data, self.federation.layout).server_round
        found = [s for s in self.earlier.get(client, []) if s.server_round < number]
        return found[-1] if found else ClientState()


def agree(made: Federation, before: ServerState, profile: ClientProfile, kept: ClientState) -> None:
    """What a client holds is what the server's state before the round is, as it travels."""
    expected = as_held(made, made.method.dispatch(before, rank_of(before, profile)))
    assert kept.adapter is not None and kept.adapter.lora_alpha == expected.lora_alpha
    for key, values in expected.tensors.items():
        if key[0] not in made.method.private:
            assert kept.adapter.tensors[key].tobytes() == np.ascontiguousarray(values).tobytes(), key
    assert kept.base_delta.keys() == before.base.keys()
    assert all(kept.base_delta[n].tobytes() == v.tobytes() for n, v in before.base.items())


EVENTS = st.lists(
    st.tuples(
        st.sets(st.integers(0, 3), min_size=1),  # who is asked
        st.sets(st.integers(0, 3), max_size=2),  # whose reply is lost after they kept their state
        st.sets(st.integers(0, 3), max_size=1),  # who has lost what was kept
        st.sampled_from([0, 0, 0, 1, 2]),  # rounds by which the server goes back afterwards
    ),
    min_size=2,
    max_size=7,
)


@ALL
@settings(max_examples=15, deadline=None)
@given(events=EVENTS, seed=st.integers(0, 99), dtype=st.sampled_from(sorted(codec.VALUE_TYPES)))
def test_whatever_happens_clients_hold_what_the_server_thinks(
    method: Method, events: list[tuple[set[int], set[int], set[int], int]], seed: int, dtype: str
) -> None:
    made = replace(federation(method), wire_dtype=dtype)
    profiles = population(method, EXAMPLES)
    nodes = Nodes(made, seed)
    states = [ServerState(0, made.initial, 0)]
    for number, (asked, dropping, losing, back) in enumerate(events):
        for client in losing:
            nodes.earlier.pop(client, None)
        nodes.dropping, nodes.seed = frozenset(dropping), seed + number  # another timeline after going back
        before = states[-1]
        try:
            state, record = server_round(made, before, [profiles[k] for k in sorted(asked)], nodes)
        except ReplyError:
            continue
        for client in record.clients:
            agree(made, before, profiles[client.id], nodes.kept[client.id])
        assert all(state.held[c] == EVERYTHING for c in record.refused)
        states.append(state)
        states = states[: max(1, len(states) - back)]


@ALL
def test_the_simulator_s_clients_are_sent_the_same_bytes(method: Method) -> None:
    """And hold the same afterwards, though they keep nothing but what is their own."""
    made, profiles = federation(method), population(method, EXAMPLES)
    nodes, state = Nodes(made, 0), ServerState(0, made.initial, 0)
    for cohort in ([0, 1, 2, 3], [0, 2], [1, 3], [0, 1, 2], [0, 1, 2, 3]):
        outbox = Outbox(made, state)
        for k in cohort:
            _, data = outbox.download(profiles[k])
            own = ClientState(private=nodes.kept[k].private) if k in nodes.kept else ClientState()
            _, after = receive(made, data, simulated(made, state, profiles[k], own))
            agree(made, state, profiles[k], after)
        state, _ = server_round(made, state, [profiles[k] for k in cohort], nodes)


def test_only_what_changed_travels() -> None:
    """One slice of one module's B changed since: its width, and nothing else."""
    made = federation(METHODS["rolora"], head=False)
    profile = population(METHODS["rolora"], [5])[0]
    first = ServerState(0, made.initial, 0)
    download, data = Outbox(made, first).download(profile)
    assert download.since == FROM_SEED
    assert len(data) == codec.changed_size(made.layout, 3, frozenset({"A", "B"}), 0, "fp32")
    f = made.initial.factors["tall"]
    B = f.B.copy()
    B[:, 1] = 0.5
    moved = replace(made.initial, factors={**made.initial.factors, "tall": Factors(A=f.A, B=B)})
    changed = {("B", "tall"): np.array([0, 1, 0])}
    state = ServerState(1, moved, 0, changed=changed, held={0: 1})
    _, data = Outbox(made, state).download(profile)
    assert len(data) == codec.changed_size(made.layout, 3, frozenset({"A", "B"}), 9, "fp32")
    _, kept = receive(made, data, ClientState(1, start(made, 3)))
    assert kept.adapter is not None
    assert np.array_equal(kept.adapter.factors["tall"].B, B)


@ALL
def test_a_client_with_another_start_asks_for_all_of_it(method: Method) -> None:
    """Another NumPy may draw other numbers from the seed: the digest tells, and the tensors are sent."""
    made, profile = federation(method), population(method, EXAMPLES)[0]
    factors = {n: replace(f, A=f.A + np.float32(1e-7)) for n, f in made.initial.factors.items()}
    other = replace(made, initial=replace(made.initial, factors=factors))
    state = ServerState(0, made.initial, 0)
    _, data = Outbox(made, state).download(profile)
    if not method.sparse:  # whose downloads are whole anyway
        with pytest.raises(LostState):
            receive(other, data, ClientState())
    download, data = Outbox(made, replace(state, held={0: EVERYTHING})).download(profile)
    assert download.since == EVERYTHING
    _, kept = receive(other, data, ClientState())
    agree(made, state, profile, kept)


def test_a_moved_model_is_packed_once_whoever_missed_it() -> None:
    """Clients of many rounds miss the same base weights: memory does not grow with the rounds."""
    made, profiles = federation(METHODS["flora"]), population(METHODS["flora"], [5, 9, 2, 7, 4])
    base = {f"{m.name}.weight": np.ones((m.d_out, m.d_in), np.float32) for m in made.layout.modules}
    changed = {("base", name): np.asarray(4) for name in base}
    held = {0: 0, 1: 1, 2: 2, 3: 3, 4: EVERYTHING}
    state = ServerState(4, made.initial, 0, base_delta=base, changed=changed, held=held)
    outbox = Outbox(made, state)
    for profile in profiles:
        download, data = outbox.download(profile)
        assert download.base_whole
        _, kept = receive(made, data, simulated(made, state, profile, ClientState()))
        assert kept.base_delta.keys() == base.keys()
    assert len(outbox._bodies) == 5 and len({id(body.base) for body in outbox._bodies.values()}) == 1


def test_the_digest_tells_every_value() -> None:
    made = federation(METHODS["fl-lora"])
    base = base_id({"wide.weight": np.zeros((3, 11), np.float32)})
    whole = digest(made, made.initial, base)
    for key, values in made.initial.tensors.items():
        other = values.copy()
        other.flat[-1] = -other.flat[-1] if other.flat[-1] else -0.0
        assert digest(made, made.initial.with_tensors({key: other}), base) != whole
    assert digest(made, made.initial, base_id({})) != whole
    assert base_id({"wide.weight": np.full((3, 11), -0.0, np.float32)}) != base


@pytest.mark.parametrize("name", ["flora", "fedex-lora"])
def test_another_processor_s_last_bits_cost_no_download(name: str) -> None:
    """A product of factors differs in its last bits from processor to processor: the name of the weights goes along, not a digest."""
    method = METHODS[name]
    made, profiles = federation(method), population(method, EXAMPLES)
    nodes, state = Nodes(made, 0), ServerState(0, made.initial, 0)
    for number in range(1, 5):
        state, record = server_round(made, state, profiles, nodes)
        assert not record.refused and len(record.clients) == 4
        for client, kept in nodes.kept.items():
            off = {n: np.nextafter(v, np.float32(9)) for n, v in kept.base_delta.items()}
            nodes.earlier[client][-1] = replace(kept, base_delta=off)
        assert number == 1 or all(kept.base_delta for kept in nodes.kept.values())


def test_a_forged_patch_is_a_codec_error() -> None:
    """A right checksum over wrong values: the digest does not fit."""
    import zlib

    made, profile = federation(METHODS["rolora"]), population(METHODS["rolora"], [5])[0]
    state = ServerState(1, made.initial, 0, changed={("B", "wide"): np.array([1, 0, 0])}, held={0: 1})
    _, data = Outbox(made, state).download(profile)
    forged = bytearray(data[:-4])
    forged[-1] ^= 1
    message = bytes(forged) + zlib.crc32(forged).to_bytes(4, "little")
    with pytest.raises(CodecError, match="not what the server holds"):
        receive(made, message, ClientState(1, start(made, 3)))
