"""The algorithms as a whole: exactness, alternation, screening, and real runs against the paper's equations."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation import LABELS, tiny_clients, tiny_model
from lora_a2 import codec
from lora_a2.core.algebra import add, delta_weight, difference, initial_adapter
from lora_a2.core.optimizers import PLAIN
from lora_a2.core.randomness import generator
from lora_a2.core.reduce import mean
from lora_a2.core.sampling import choose_cohort, cohort_size
from lora_a2.core.types import (
    Adapter,
    ClientProfile,
    ClientState,
    Download,
    Factor,
    Factors,
    Layout,
    Mask,
    ModuleShape,
    Reply,
    ServerState,
    Upload,
)
from lora_a2.errors import ReplyError
from lora_a2.federation.agreement import usual_learning_rate
from lora_a2.federation.client import client_round, upload_schema
from lora_a2.federation.exchange import Train
from lora_a2.federation.loop import Plan
from lora_a2.federation.population import Client
from lora_a2.federation.records import RoundRecord
from lora_a2.federation.server import server_round
from lora_a2.methods import METHODS, get_method
from lora_a2.methods.base import Method
from lora_a2.methods.hetlora import counted_norms
from lora_a2.model.pretrained import random_head
from lora_a2.simulation import make_plan, simulate
from reference import ReferenceClassifier, train_reference
from tiny import POOLING, backbone

HYPER: dict[str, Any] = {
    "num_server_rounds": 3,
    "local_epochs": 2,
    "batch_size": 4,
    "learning_rate": 2e-3,
    "weight_decay": 0.1,
    "r": 4,
    "lora_alpha": 16.0,
}

# --- one aggregation, on random adapters ---------------------------------------------------------------------------

sides = st.tuples(st.integers(1, 6), st.integers(1, 6)).filter(lambda s: s[0] != s[1])
layouts = st.lists(sides, min_size=1, max_size=3).map(
    lambda shapes: Layout(
        tuple(ModuleShape(f"m{i}", *shape) for i, shape in enumerate(shapes)), (("weight", (2, 3)), ("bias", (2,)))
    )
)
counts = st.lists(st.integers(1, 50), min_size=1, max_size=4)

CORE = ("lora-a2", "fl-lora", "ffa-lora")
"""Methods that leave the frozen weights alone; test_conformance.py goes over all of them."""


def adapter_of(layout: Layout, rank: int, rng: np.random.Generator) -> Adapter:
    head = {name: rng.standard_normal(shape, np.float32) for name, shape in layout.head}
    start = initial_adapter(layout, rank, 16.0, rng, head)
    factors = {n: Factors(f.A, rng.standard_normal(f.B.shape, np.float32)) for n, f in start.factors.items()}
    return dataclasses.replace(start, factors=factors)


def reply(
    start: Adapter, end: Adapter, trainable: frozenset[Factor], mask: Mask | None, examples: int, client: int = 0
) -> Reply:
    update = difference(end, start, trainable, mask)
    upload = Upload(1, client, trainable, examples, 0.5, mask, update)
    profile = ClientProfile(client, start.rank, start.rank, examples)
    return Reply(profile, Download(1, client, trainable, start), upload)


def random_replies(
    layout: Layout, rank: int, sizes: Sequence[int], trainable: frozenset[Factor], seed: int, masked: bool
) -> tuple[Adapter, list[Reply]]:
    rng = generator(seed, "replies")
    start = adapter_of(layout, rank, rng)
    replies = []
    for k, n in enumerate(sizes):
        mask = {m.name: rng.random(rank) < 0.5 for m in layout.modules} if masked else None
        replies.append(reply(start, adapter_of(layout, rank, rng), trainable, mask, n, k))
    return start, replies


@settings(max_examples=60, deadline=None)
@given(
    layouts,
    st.integers(1, 4),
    counts,
    st.sampled_from([frozenset({"A"}), frozenset({"B"}), frozenset({"A", "B"})]),
    st.integers(0, 10**6),
    st.booleans(),
)
def test_weighted_mean_is_the_naive_one(
    layout: Layout, rank: int, sizes: list[int], trainable: frozenset[Factor], seed: int, masked: bool
) -> None:
    """Slices that a client did not send count as zero from it; the weights are those of all the round's clients."""
    start, replies = random_replies(layout, rank, sizes, trainable, seed, masked)
    state = ServerState(0, start)
    got = PLAIN.step(state, mean(state, iter(replies))).adapter
    for module in layout.modules:
        old, new = start.factors[module.name], got.factors[module.name]
        for factor in ("A", "B"):
            expected = old.slices(factor).astype(float).copy()
            for i in range(rank):
                for r in replies:
                    keep = r.upload.mask is None or r.upload.mask[module.name][i]
                    if factor in trainable and keep:
                        change = r.upload.update.factors[module.name].slices(factor)[i]
                        expected[i] += r.upload.num_examples / sum(sizes) * change
            np.testing.assert_allclose(new.slices(factor), expected, rtol=1e-5, atol=1e-6)
            if factor not in trainable:
                assert new.get(factor).tobytes() == old.get(factor).tobytes()
    for name, old_value in start.head.items():
        change = sum(n / sum(sizes) * r.upload.update.head[name] for n, r in zip(sizes, replies, strict=True))
        np.testing.assert_allclose(got.head[name], old_value + change, rtol=1e-5, atol=1e-6)


def inexactness(start: Adapter, new: Adapter, replies: Sequence[Reply]) -> float:
    """How far the server's ΔW is from the weighted mean of the clients' ΔW, relative to the latter's largest value."""
    total = sum(r.upload.num_examples for r in replies)
    worst = 0.0
    for name in start.factors:
        ends = [(r.upload.num_examples / total, add(r.download.adapter, r.upload.update)) for r in replies]
        mean = sum(w * delta_weight(end, name).astype(float) for w, end in ends)
        worst = max(worst, float(np.abs(delta_weight(new, name) - mean).max() / max(np.abs(mean).max(), 1e-12)))
    return worst


@pytest.mark.parametrize("method", [METHODS[name] for name in CORE], ids=lambda m: m.name)
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_methods_are_as_exact_as_they_say(method: Method, number: int, masked: bool) -> None:
    layout = Layout((ModuleShape("x", 6, 9), ModuleShape("y", 8, 3)))
    trainable = method.schedule(number)
    start, replies = random_replies(layout, 4, [3, 10, 1], trainable, number, masked and method.select is not None)
    state = ServerState(number - 1, start)
    new = method.server_step(state, method.reduce(state, iter(replies)), PLAIN.step).adapter
    error = inexactness(start, new, replies)
    assert error < 1e-5 if method.exact else error > 1e-2


def test_what_the_three_methods_declare() -> None:
    assert {m.name for m in METHODS.values() if m.exact} >= {"lora-a2", "ffa-lora"}
    assert not METHODS["fl-lora"].exact
    rounds = range(1, 7)
    assert ["".join(METHODS["lora-a2"].schedule(t)) for t in rounds] == ["B", "A", "B", "A", "B", "A"]
    assert all(METHODS["ffa-lora"].schedule(t) == {"B"} for t in rounds)
    assert all(METHODS["fl-lora"].schedule(t) == {"A", "B"} for t in rounds)
    assert METHODS["lora-a2"].learning_rate_ratio == 5


# --- whole runs ----------------------------------------------------------------------------------------------------


def naive_run(name: str, plan: Plan, clients: Sequence[Client], head: str) -> list[Adapter]:
    """The server's adapters after each round, from the equations of paper.md; nothing of the engine is used."""
    fixed = random_head(len(LABELS), 16, 4.0, seed=0)
    model = ReferenceClassifier(backbone("bert"), [], POOLING["bert"], fixed)
    ratio = {"lora-a2": 5.0}.get(name, 1.0)
    seed, rank = plan.federation.seed, HYPER["r"]
    start = plan.federation.initial
    assert bool(start.head) == (head == "trained")

    def train(client: Client, orders: list[np.ndarray], trainable: frozenset[Factor], mask: Mask | None) -> Adapter:
        return train_reference(
            model,
            start,
            client.train.input_ids,
            client.train.labels,
            orders,
            trainable,
            mask,
            batch_size=HYPER["batch_size"],
            learning_rate=HYPER["learning_rate"],
            ratio=ratio,
            weight_decay=HYPER["weight_decay"],
        )

    history = []
    for t in range(1, HYPER["num_server_rounds"] + 1):
        trained = {"lora-a2": "B" if t % 2 else "A", "ffa-lora": "B", "fl-lora": "AB"}[name]
        trainable: frozenset[Factor] = frozenset(trained)  # type: ignore[arg-type]
        ends: list[tuple[int, Adapter]] = []
        for client in clients:
            n = len(client.train)
            mask = None
            if name == "lora-a2":
                probed = train(client, [generator(seed, "probe", t, client.id).permutation(n)], trainable, None)
                mask = naive_mask(start, probed, trained, plan.profiles[client.id].rank_budget)
            rng = generator(seed, "train", t, client.id)
            ends.append((n, train(client, [rng.permutation(n) for _ in range(HYPER["local_epochs"])], trainable, mask)))
        total = sum(n for n, _ in ends)
        factors, scale = {}, [n / total for n, _ in ends]
        for module, old in start.factors.items():
            b, a = old.B.astype(float), old.A.astype(float)
            for w, (_, end) in zip(scale, ends, strict=True):
                b = b + w * (end.factors[module].B.astype(float) - old.B)
                a = a + w * (end.factors[module].A.astype(float) - old.A)
            factors[module] = Factors(A=a.astype(np.float32), B=b.astype(np.float32))
            assert factors[module].rank == rank
        values = {
            k: np.float32(sum(w * end.head[k].astype(float) for w, (_, end) in zip(scale, ends, strict=True)))
            for k in start.head
        }
        start = Adapter(factors, start.lora_alpha, values)
        history.append(start)
    return history


def naive_mask(start: Adapter, probed: Adapter, trained: str, budget: int) -> Mask:
    scored = []
    for module, old in start.factors.items():
        new = probed.factors[module]
        for i in range(old.rank):
            change = (
                np.outer(new.B[:, i] - old.B[:, i], old.A[i])
                if trained == "B"
                else np.outer(old.B[:, i], new.A[i] - old.A[i])
            )
            scored.append((np.linalg.norm(change), module, i))
    scored.sort(key=lambda s: -s[0])
    mask = {module: np.zeros(f.rank, bool) for module, f in start.factors.items()}
    for _, module, i in scored[: budget * len(mask)]:
        mask[module][i] = True
    return mask


def distance(got: Adapter, expected: Adapter) -> float:
    """Largest error of any factor or head tensor, relative to its largest value."""
    pairs = [(got.factors[n].get(x), f.get(x)) for n, f in expected.factors.items() for x in ("A", "B")]
    pairs += [(got.head[n], v) for n, v in expected.head.items()]
    return max(float(np.abs(g - e).max() / max(np.abs(e).max(), 1e-12)) for g, e in pairs)


def run(name: str, clients: Sequence[Client], head: str = "frozen", **options: Any) -> tuple[Plan, list[Any]]:
    model = tiny_model(head=head)
    plan = make_plan(model, clients, name, **{**HYPER, "rank_budget": budget_of(name), **options})
    return plan, list(simulate(model, clients, plan))


def budget_of(name: str) -> Any:
    return [1, 2, 1] if get_method(name).select else HYPER["r"]


@pytest.mark.parametrize(
    ("name", "head"), [("lora-a2", "frozen"), ("fl-lora", "frozen"), ("ffa-lora", "frozen"), ("lora-a2", "trained")]
)
def test_a_whole_run_is_the_paper_s_equations(name: str, head: str) -> None:
    clients = tiny_clients()
    plan, rounds = run(name, clients, head)
    expected = naive_run(name, plan, clients, head)
    assert len(rounds) == len(expected) == 3
    for (state, record), adapter in zip(rounds, expected, strict=True):
        assert distance(state.adapter, adapter) < 1e-4
        assert record.server_round == state.server_round
        assert [c.num_examples for c in record.clients] == [7, 12, 4]
    moved = distance(rounds[-1][0].adapter, plan.federation.initial)
    assert moved > 1e-2, "three rounds should have changed something"
    again = RoundRecord.from_json(json.loads(json.dumps(rounds[-1][1].to_json())))
    assert again == rounds[-1][1]


@pytest.mark.parametrize("name", CORE)
def test_a_real_round_is_as_exact_as_its_method_says(name: str) -> None:
    """Trained replies, through the wire: what the server holds afterwards against the mean of what clients hold."""
    model, clients = tiny_model(), tiny_clients()
    plan = make_plan(model, clients, name, **{**HYPER, "rank_budget": budget_of(name), "learning_rate": 0.02})
    federation, state = plan.federation, plan.start()
    held: dict[int, ClientState] = {}
    for number in (1, 2, 3):
        kept: list[Reply] = []
        watched = dataclasses.replace(federation.method, reduce=keeping(federation.method, kept))
        watching = dataclasses.replace(federation, method=watched)
        before = state.adapter
        state, _ = server_round(watching, state, plan.profiles, honest(plan, model, clients, held))
        assert len(kept) == 3
        assert (error := inexactness(before, state.adapter, kept)) < 1e-5 or not federation.method.exact
        if not federation.method.exact and number > 1:
            assert error > 1e-3


def keeping(method: Method, kept: list[Reply]) -> Any:
    def reduce(state: ServerState, replies: Any) -> Any:
        kept.extend(replies)
        return method.reduce(state, iter(kept))

    return reduce


def honest(plan: Plan, model: Any, clients: Sequence[Client], kept: dict[int, ClientState] | None = None) -> Train:
    """Local training of all clients at once, without the simulator; `kept` is what each holds from round to round."""
    kept = {} if kept is None else kept

    def train(given: Iterable[tuple[ClientProfile, bytes]]) -> list[tuple[ClientProfile, bytes]]:
        downloads = list(given)
        members = [(profile, clients[profile.id].train) for profile, _ in downloads]
        held = [kept.get(profile.id, ClientState()) for profile, _ in downloads]
        answers = client_round(plan.federation, model.network, members, [data for _, data in downloads], held)
        kept.update({profile.id: state for (profile, _), (_, state) in zip(downloads, answers, strict=True)})
        return [(profile, data) for (profile, _), (data, _) in zip(downloads, answers, strict=True)]

    return train


def test_only_selected_slices_of_the_round_s_factor_move() -> None:
    plan, rounds = run("lora-a2", tiny_clients())
    before = plan.federation.initial
    budget = sum(p.rank_budget for p in plan.profiles) * len(before.factors)
    for number, (state, record) in enumerate(rounds, 1):
        trained, frozen = ("B", "A") if number % 2 else ("A", "B")
        assert record.trainable == [trained]
        for client, profile in zip(record.clients, plan.profiles, strict=True):
            assert sum(client.selected.values()) == profile.rank_budget * len(before.factors)
        moved = 0
        for name, old in before.factors.items():
            new = state.adapter.factors[name]
            assert new.get(frozen).tobytes() == old.get(frozen).tobytes()
            changed = (new.slices(trained) != old.slices(trained)).any(1)
            assert changed.sum() <= sum(c.selected.get(name, 0) for c in record.clients)
            moved += int(changed.sum())
        assert 0 < moved <= budget < 4 * len(before.factors) * 3
        before = state.adapter


def test_unselected_slices_keep_their_bytes_for_a_single_client() -> None:
    plan, rounds = run("lora-a2", tiny_clients((9,)), rank_budget=1)
    before = plan.federation.initial
    for number, (state, record) in enumerate(rounds, 1):
        factor = "B" if number % 2 else "A"
        for name, old in before.factors.items():
            changed = (state.adapter.factors[name].slices(factor) != old.slices(factor)).any(1)
            assert changed.sum() == record.clients[0].selected.get(name, 0)
        before = state.adapter


@pytest.mark.parametrize("name", CORE)
def test_cohorts_of_one_and_of_three_agree(name: str) -> None:
    clients = tiny_clients()
    _, ones = run(name, clients, clients_per_pass=1)
    _, threes = run(name, clients, clients_per_pass=3)
    for (one, record), (three, other) in zip(ones, threes, strict=True):
        assert distance(three.adapter, one.adapter) < 1e-4
        assert [c.selected for c in record.clients] == [c.selected for c in other.clients]
        assert record.uploaded_bytes == other.uploaded_bytes


@pytest.mark.parametrize("name", ["lora-a2", "fedsa-lora", "full"])
def test_the_number_of_workers_changes_no_byte(name: str) -> None:
    clients = tiny_clients((5, 9, 4, 6, 7))
    runs = [run(name, clients, rank_budget=1, num_workers=n)[1] for n in (1, 3)]
    for (one, record), (three, other) in zip(*runs, strict=True):
        assert distance(three.adapter, one.adapter) == 0
        assert dataclasses.replace(record, seconds={}) == dataclasses.replace(other, seconds={})


def test_the_same_seed_gives_the_same_bytes_and_another_does_not() -> None:
    clients = tiny_clients()
    finals = [run("lora-a2", clients, seed=seed)[1][-1][0].adapter for seed in (5, 5, 6)]
    same = [
        all(f.B.tobytes() == other.factors[n].B.tobytes() for n, f in finals[0].factors.items()) for other in finals
    ]
    assert same == [True, True, False]


@pytest.mark.parametrize("name", METHODS)
def test_learning_rates_are_those_of_model_and_method(name: str) -> None:
    scale = METHODS[name].learning_rate_scale
    assert usual_learning_rate("sentence-transformers/all-MiniLM-L6-v2", METHODS[name]) == 5e-3 * scale
    plan = make_plan(tiny_model(), tiny_clients(), name)
    assert plan.federation.training.learning_rate == 5e-4 * scale


# --- cohorts ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.floats(0, 1, exclude_min=True), st.integers(0, 100), st.integers(1, 100), st.randoms())
def test_cohorts_are_reproducible_and_ordered(clients: int, fraction: float, seed: int, number: int, rng: Any) -> None:
    profiles = [ClientProfile(i, 4, 2, rng.randint(1, 9)) for i in range(clients)]
    chosen = choose_cohort(profiles, fraction, seed, number)
    ids = [p.id for p in chosen]
    for first, second in pairwise(chosen):
        assert first.num_examples > second.num_examples or (
            first.num_examples == second.num_examples and first.id < second.id
        )
    assert len(ids) == cohort_size(clients, fraction) == max(1, round(fraction * clients))
    rng.shuffle(profiles)
    assert choose_cohort(profiles, fraction, seed, number) == chosen


def test_cohorts_differ_from_round_to_round_and_reach_everyone() -> None:
    profiles = [ClientProfile(i, 4, 2, 10) for i in range(10)]
    cohorts = [tuple(p.id for p in choose_cohort(profiles, 0.3, 0, t)) for t in range(1, 31)]
    assert len(set(cohorts)) > 20
    assert {i for cohort in cohorts for i in cohort} == set(range(10))


def test_a_run_trains_the_cohort_alone() -> None:
    clients = tiny_clients((5, 6, 4, 7))
    plan, rounds = run("lora-a2", clients, fraction_train=0.5, rank_budget=1)
    for _, record in rounds:
        expected = choose_cohort(plan.profiles, 0.5, 0, record.server_round)
        assert [c.id for c in record.clients] == sorted(p.id for p in expected)
        assert len(record.clients) == 2


# --- what crosses the wire, and what must not touch the state -------------------------------------------------------


class Wire:
    """Stands between server and clients: records what crosses, and may change one client's upload."""

    def __init__(self, name: str = "lora-a2") -> None:
        self.model, self.clients = tiny_model(), tiny_clients()
        self.plan = make_plan(self.model, self.clients, name, **{**HYPER, "rank_budget": budget_of(name)})
        self.federation = self.plan.federation
        self.down: list[int] = []
        self.up: list[int] = []

    def round(self, change: Callable[[bytes], bytes | None] | None = None, victim: int = 1) -> Any:
        inner = honest(self.plan, self.model, self.clients)

        def train(given: Iterable[tuple[ClientProfile, bytes]]) -> Any:
            downloads = list(given)
            self.down += [len(data) for _, data in downloads]
            for profile, data in inner(downloads):
                sent = change(data) if change and profile.id == victim else data
                if sent is not None:
                    self.up.append(len(sent))
                    yield profile, sent

        return server_round(self.federation, self.plan.start(), self.plan.profiles, train)

    def forge(self, **changes: Any) -> Callable[[bytes], bytes]:
        """A change of an upload's fields; a value may be a function of the upload."""

        def change(data: bytes) -> bytes:
            upload = codec.decode_upload(data, upload_schema(self.federation), HYPER["r"], HYPER["lora_alpha"])
            given = {k: v(upload) if callable(v) else v for k, v in changes.items()}
            return codec.encode(dataclasses.replace(upload, **given), upload_schema(self.federation))

        return change


@pytest.mark.parametrize("name", CORE)
def test_the_ledger_counts_the_bytes_that_cross(name: str) -> None:
    wire = Wire(name)
    _, record = wire.round()
    assert len(wire.up) == len(wire.down) == 3
    assert (record.uploaded_bytes, record.downloaded_bytes) == (sum(wire.up), sum(wire.down))
    assert [c.uploaded_bytes for c in record.clients] == wire.up
    assert [c.downloaded_bytes for c in record.clients] == wire.down
    overhead = min(size - 4 * c.uploaded_parameters for size, c in zip(wire.up, record.clients, strict=True))
    assert 0 < overhead < 100
    assert record.uploaded_parameters == sum(c.uploaded_parameters for c in record.clients)


def test_parameters_follow_the_paper_s_counting_rule() -> None:
    layout = tiny_model().layout
    both = HYPER["r"] * sum(m.d_in + m.d_out for m in layout.modules)
    only_b = HYPER["r"] * sum(m.d_out for m in layout.modules)
    # The first round's downloads carry nothing: the start follows from the seed.
    for name, up in (("fl-lora", both), ("ffa-lora", only_b)):
        found = Wire(name).round()[1].clients
        assert {(c.uploaded_parameters, c.downloaded_parameters) for c in found} == {(up, 0)}
    widths = {m.name: m.d_out for m in layout.modules}
    for client in Wire("lora-a2").round()[1].clients:
        assert client.uploaded_parameters == sum(n * widths[name] for name, n in client.selected.items())
        assert client.downloaded_parameters == 0


def poisoned(value: float) -> Callable[[Upload], Adapter]:
    """The upload's update with one sent value replaced."""

    def update(upload: Upload) -> Adapter:
        assert upload.mask is not None
        name = next(n for n, m in upload.mask.items() if m.any())
        b = upload.update.factors[name].B.copy()
        b[0, np.flatnonzero(upload.mask[name])[0]] = value
        factors = {**upload.update.factors, name: Factors(upload.update.factors[name].A, b)}
        return dataclasses.replace(upload.update, factors=factors)

    return update


def one_slice_more(upload: Upload) -> Mask:
    mask = {name: m.copy() for name, m in (upload.mask or {}).items()}
    name = next(n for n, m in mask.items() if not m.all())
    mask[name][np.flatnonzero(~mask[name])[0]] = True
    return mask


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"server_round": 2}, "reply for round 2"),
        ({"client": 2}, "client 2"),
        ({"shared": frozenset({"A"})}, r"factors ['A']"),
        ({"shared": frozenset({"A", "B"})}, r"factors ['A', 'B']"),
        ({"num_examples": 13}, "claims 13 examples; its profile allows 12"),
        ({"mask": None}, "its budget allows"),
        ({"mask": one_slice_more}, "its budget allows"),
        ({"update": poisoned(float("nan"))}, "not finite"),
        ({"update": poisoned(float("-inf"))}, "not finite"),
        ({"train_loss": float("nan")}, "not finite"),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),  # the same in every process
)
def test_a_reply_that_fails_screening_leaves_no_trace(changes: dict[str, Any], said: str) -> None:
    """The round is, byte for byte, the one in which that client never answered; the refusal is recorded."""
    wire = Wire()
    state, record = wire.round(wire.forge(**changes))
    without, quiet = Wire().round(lambda data: None)
    assert list(record.refused) == [1]
    assert said in record.refused[1]
    assert not quiet.refused
    assert [c.id for c in record.clients] == [0, 2]
    assert record.clients == quiet.clients
    assert record.train_loss == quiet.train_loss
    for name, f in without.adapter.factors.items():
        assert state.adapter.factors[name].A.tobytes() == f.A.tobytes()
        assert state.adapter.factors[name].B.tobytes() == f.B.tobytes()
    text = json.dumps(record.to_json(), allow_nan=False)
    assert RoundRecord.from_json(json.loads(text)) == record


@pytest.mark.parametrize("cut", [lambda d: d[:-1], lambda d: b"", lambda d: bytes([*d[:70], d[70] ^ 1, *d[71:]])])
def test_damaged_bytes_are_refused(cut: Callable[[bytes], bytes]) -> None:
    _, record = Wire().round(cut)
    assert list(record.refused) == [1]
    assert [c.id for c in record.clients] == [0, 2]


def test_an_honest_reply_within_its_limits_is_kept() -> None:
    """The forgery itself is not what is refused."""
    wire = Wire()
    state, record = wire.round(wire.forge(num_examples=12))
    plain, other = Wire().round()
    assert not record.refused
    assert record.clients == other.clients
    assert distance(state.adapter, plain.adapter) == 0


def test_a_round_without_a_usable_reply_is_an_error() -> None:
    wire = Wire()
    with pytest.raises(ReplyError, match="no usable reply"):
        server_round(wire.federation, wire.plan.start(), wire.plan.profiles, lambda downloads: iter(()))
    with pytest.raises(ReplyError, match="no usable reply: 3 were refused, the first because: "):
        server_round(
            wire.federation, wire.plan.start(), wire.plan.profiles, lambda downloads: [(p, b"x") for p, _ in downloads]
        )


@given(st.lists(st.floats(0.01, 1e6), min_size=3, max_size=9))
def test_no_norm_outweighs_all_others_in_hetlora(norms: list[float]) -> None:
    counted = counted_norms(norms)
    second = sorted(norms)[-2]
    assert max(counted) <= 3 * second * (1 + 1e-12)
    assert sorted(counted)[:-1] == sorted(norms)[:-1]
    assert max(counted) / sum(counted) <= 0.75 + 1e-12
    if max(norms) <= 3 * second:
        assert counted == norms
