"""What every registered method must do, whatever it is: a new one joins by its registry row.

The clients here do not train: they answer with random changes, over the real codec and the real server round.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_a2 import codec, methods
from lora_a2.core.algebra import add, factored_svd, initial_adapter
from lora_a2.core.optimizers import PLAIN
from lora_a2.core.reduce import Mean
from lora_a2.core.transforms import sent
from lora_a2.core.types import (
    ClientProfile,
    ClientState,
    Download,
    Factor,
    Factors,
    Layout,
    ModuleShape,
    Reply,
    ServerState,
    Upload,
    dense,
    weight_name,
)
from lora_a2.engine.work import TrainingSettings
from lora_a2.errors import ReplyError
from lora_a2.federation.agreement import Federation
from lora_a2.federation.client import sending, upload_schema
from lora_a2.federation.cost import estimate_cost
from lora_a2.federation.holdings import Outbox, rank_of, receive
from lora_a2.federation.records import RoundRecord
from lora_a2.federation.server import server_round
from lora_a2.methods import METHODS, get_method
from lora_a2.methods.base import Method

MODULES = (ModuleShape("wide", 3, 11), ModuleShape("tall", 9, 4))
RANK = 3
ALL = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
FACTORS: tuple[Factor, Factor] = ("A", "B")


def test_every_file_is_a_row_under_its_own_name() -> None:
    files = {path.stem for path in Path(methods.__file__).parent.glob("*.py")} - {"__init__", "base"}
    assert {name.replace("-", "_") for name in METHODS} == files
    assert all(name == method.name for name, method in METHODS.items())


@ALL
def test_a_method_s_options_are_the_arguments_of_its_variant(method: Method) -> None:
    assert bool(method.options) == (method.variant is not None)
    if method.variant is not None:
        arguments = {name: p.default for name, p in inspect.signature(method.variant).parameters.items()}
        assert arguments == {option.name: option.default for option in method.options}
        built = method.variant(**arguments)
        assert (built.name, built.options, built.variant) == (method.name, method.options, method.variant)
        assert all(built.schedule(t) == method.schedule(t) for t in range(1, 7))


def federation(method: Method, head: bool = True) -> Federation:
    heads = (("weight", (2, 3)),) if head else ()
    weights = tuple((weight_name(m.name), (m.d_out, m.d_in)) for m in MODULES)
    layout = Layout(MODULES, heads, (*weights, ("bias", (5,))) if method.full else ())
    values = {name: np.ones(shape, np.float32) for name, shape in heads}
    initial = initial_adapter(layout, RANK, 6.0, np.random.default_rng(0), values, method.core)
    training = TrainingSettings(1, 1e-3, 1.0)
    return Federation(method, layout, initial, 0, 1, training, "fp32", transforms=method.transforms)


def population(method: Method, examples: Sequence[int]) -> list[ClientProfile]:
    """Clients of ranks 3, 1, 2, 3, … where the method allows."""
    ranks = [(3, 1, 2)[k % 3] if method.mixed_ranks else RANK for k in range(len(examples))]
    return [
        ClientProfile(k, RANK if method.select else r, r, n)
        for k, (r, n) in enumerate(zip(ranks, examples, strict=True))
    ]


@dataclass
class Cohort:
    """Stands for the clients: decodes each download, invents a change, uploads it. `silent` clients never answer."""

    federation: Federation
    seed: int
    silent: frozenset[int] = frozenset()
    size: float = 0.3
    kept: dict[int, ClientState] = field(default_factory=dict)
    seen: dict[int, tuple[Download, Upload]] = field(default_factory=dict)

    def __call__(self, downloads: Sequence[tuple[ClientProfile, bytes]]) -> list[tuple[ClientProfile, bytes]]:
        self.seen = {}
        return [(p, self.answer(p, data)) for p, data in downloads if p.id not in self.silent]

    def answer(self, profile: ClientProfile, data: bytes) -> bytes:
        made = self.federation
        download, self.kept[profile.id] = receive(made, data, self.kept.get(profile.id, ClientState()))
        upload = self.change(profile, download)
        self.seen[profile.id] = download, upload
        return codec.encode(upload, upload_schema(made))

    def change(self, profile: ClientProfile, download: Download) -> Upload:
        method = self.federation.method
        rng = np.random.default_rng([self.seed, profile.id, download.server_round])
        start, shared = download.adapter, method.shared(download.server_round)

        def moved(values: np.ndarray, factor: Factor | None = None) -> np.ndarray:
            change = self.size * rng.standard_normal(values.shape, np.float32)
            return change if factor is None or factor in shared else np.zeros_like(change)

        update = start.with_tensors(
            {(kind, n): moved(v, None if kind == "head" else kind) for (kind, n), v in start.tensors.items()}
        )
        mask = None
        if method.select is not None:
            mask = method.select(start, add(start, update), shared, profile.rank_budget, rng)
            kept = {n: Factors(f.A * mask[n][:, None], f.B * mask[n]) for n, f in update.factors.items()}
            update = replace(update, factors=kept)
        if method.asks_gradients(download.server_round):
            update = replace(update, head={n: np.zeros_like(v) for n, v in start.head.items()})
        update = sent(method.transforms, update, sending(self.federation, download, shared, mask))
        asked = method.full or method.asks_gradients(download.server_round)
        weights = {n: moved(np.zeros(shape)) for n, shape in self.federation.layout.base} if asked else {}
        number = download.server_round
        return Upload(number, profile.id, shared, profile.num_examples, 0.5, mask, update, weights, method.sparse)


def effective(state: ServerState) -> dict[str, np.ndarray]:
    """W − W0 of every weight that can move, and the head."""
    found = {name: value.astype(np.float64) for name, value in state.base.items()}
    for name, f in state.adapter.pair.factors.items():
        found[weight_name(name)] = found.get(weight_name(name), 0) + state.adapter.scaling * f.B.astype(float) @ f.A
    return {**found, **state.adapter.head}


def ideal(before: ServerState, cohort: Cohort) -> dict[str, np.ndarray]:
    """W + Σ w_k s_k (B_k A_k − B A), from what the clients started with and ended with."""
    expected = effective(before)
    total = sum(upload.num_examples for _, upload in cohort.seen.values())
    for download, upload in cohort.seen.values():
        start, weight = download.adapter, upload.num_examples / total
        end = add(start, upload.update).pair
        for n, f in end.factors.items():
            old = start.pair.factors[n]
            change = start.scaling * (f.B.astype(float) @ f.A - old.B.astype(float) @ old.A)
            expected[weight_name(n)] = expected[weight_name(n)] + weight * change
        for n, values in upload.base_update.items():
            expected[n] = expected.get(n, 0) + weight * dense(values)
        for n, values in upload.update.head.items():
            expected[n] = expected[n] + weight * values
    return expected


def run(
    method: Method, examples: Sequence[int], cohorts: Sequence[Sequence[int]], seed: int = 0, **options: object
) -> tuple[list[ServerState], list[RoundRecord], list[dict[str, np.ndarray]], Cohort]:
    """Rounds with the given cohorts: the states from the start on, the records, and what exact aggregation would give."""
    made = federation(method)
    profiles = population(method, examples)
    cohort = Cohort(made, seed, **options)  # type: ignore[arg-type]
    states, records, wanted = [ServerState(0, made.initial, 0)], [], []
    for members in cohorts:
        state, record = server_round(made, states[-1], [profiles[k] for k in members], cohort)
        wanted.append(ideal(states[-1], cohort))
        states.append(state)
        records.append(record)
    return states, records, wanted, cohort


def distance(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    assert got.keys() == expected.keys()
    return max(float(np.abs(got[n] - expected[n]).max()) for n in got)


COHORTS = st.lists(st.sets(st.integers(0, 3), min_size=1).map(sorted), min_size=1, max_size=3)


@ALL
@settings(max_examples=12, deadline=None)
@given(examples=st.lists(st.integers(1, 50), min_size=4, max_size=4), cohorts=COHORTS, seed=st.integers(0, 99))
def test_declared_exact_is_exact(method: Method, examples: list[int], cohorts: list[list[int]], seed: int) -> None:
    states, _, wanted, _ = run(method, examples, cohorts, seed)
    if method.exact:
        for state, expected in zip(states[1:], wanted, strict=True):
            if method.asks_gradients(state.server_round):
                continue  # a start, not a mean
            assert distance(effective(state), expected) < 2e-5
    heads = [state.adapter.head["weight"] for state in states[1:]]
    assert all(np.allclose(h, w["weight"], atol=1e-5) for h, w in zip(heads, wanted, strict=True))


@pytest.mark.parametrize("name", ["fl-lora", "hetlora", "flasc"])
def test_not_declared_exact_is_not(name: str) -> None:
    """FedIT's discordance, and those of its kin: Σ w_k B_k A_k ≠ (Σ w_k B_k)(Σ w_k A_k)."""
    states, _, wanted, _ = run(METHODS[name], [5, 9, 2, 7], [[0, 1, 2, 3]])
    assert not METHODS[name].exact
    assert distance(effective(states[-1]), wanted[-1]) > 1e-3


def test_flexlora_is_the_best_approximation_of_its_rank() -> None:
    """Of Σ w_k s_k B_k A_k, the products themselves: what a client of low rank did not receive is not in them."""
    states, _, _, cohort = run(METHODS["flexlora"], [5, 9, 2, 7], [[0, 1, 2, 3], [1, 3]])
    got = effective(states[-1])
    for module in ("wide", "tall"):
        mean = np.zeros(got[weight_name(module)].shape)
        for download, upload in cohort.seen.values():
            f = add(download.adapter, upload.update).factors[module]
            mean += upload.num_examples / (9 + 7) * download.adapter.scaling * f.B @ f.A
        u, s, vt = np.linalg.svd(mean, full_matrices=False)
        np.testing.assert_allclose(got[weight_name(module)], u[:, :RANK] * s[:RANK] @ vt[:RANK], atol=2e-5)


def test_small_svd_holds_where_the_full_one_is_ill_conditioned() -> None:
    rng = np.random.default_rng(0)
    scales = 10.0 ** np.array([4, 4, -3, -3, -12, 0])
    B = (rng.standard_normal((40, 6)) * scales).astype(np.float32)
    A = rng.standard_normal((6, 30)).astype(np.float32)
    A[5] = A[0]
    u, values, vt = factored_svd(Factors(A=A, B=B))
    product = B.astype(float) @ A
    np.testing.assert_allclose((u.astype(float) * values) @ vt, product, atol=1e-6 * np.abs(product).max())
    np.testing.assert_allclose(u.T @ u, np.eye(6), atol=1e-5)
    np.testing.assert_allclose(vt @ vt.T, np.eye(6), atol=1e-5)
    assert (np.diff(values) <= 0).all()


@pytest.mark.parametrize("method", [m for m in METHODS.values() if m.linear], ids=lambda m: m.name)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99), server_rounds=st.integers(0, 1))
def test_declared_linear_is_linear(method: Method, seed: int, server_rounds: int) -> None:
    """f(u + v) − f(u) = f(v) − f(0), entry by entry of what the replies come to."""
    states, _, _, cohort = run(method, [5, 9, 2, 7], [[0, 1, 2, 3]] * (1 + server_rounds), seed)
    before, profiles = states[-2], population(method, [5, 9, 2, 7])

    def after(*seeds: int) -> dict[str, np.ndarray]:
        replies = []
        for profile in profiles:
            download = cohort.seen[profile.id][0]
            parts = [Cohort(cohort.federation, s).change(profile, download) for s in seeds]
            zero = Cohort(cohort.federation, 0, size=0).change(profile, download)
            update, weights = zero.update, dict(zero.base_update)
            for part in parts:
                update = add(update, part.update)
                weights = {n: dense(w) + dense(part.base_update[n]) for n, w in weights.items()}
            replies.append(Reply(profile, download, replace(zero, update=update, base_update=weights)))
        found: Mean = method.reduce(before, replies)
        return {f"{kind}/{n}": v for (kind, n), v in found.update.items()}

    both, first, second, none = after(1, 2), after(1), after(2), after()
    assert both
    for key in both:
        np.testing.assert_allclose(both[key] - first[key], second[key] - none[key], atol=1e-5)


@ALL
def test_frozen_and_private_factors_never_move_or_travel(method: Method) -> None:
    states, _, _, cohort = run(method, [5, 9, 2, 7], [[0, 1, 2, 3], [0, 2], [1, 3]])
    still = method.frozen | method.private
    for state in states[1:]:
        for name, f in state.adapter.factors.items():
            for factor in still:
                np.testing.assert_array_equal(f.get(factor), states[0].adapter.factors[name].get(factor))
    made = cohort.federation
    _, data = Outbox(made, states[-1]).download(population(method, [5, 9, 2, 7])[0])
    assert not codec.frame_factors(data, made.layout) & still
    for _, upload in cohort.seen.values():
        assert not upload.shared & still


@ALL
def test_clients_hold_the_server_s_base_weights(method: Method) -> None:
    """Bit for bit, whether they were there in the last round, missed some, or come for the first time."""
    states, _, _, cohort = run(method, [5, 9, 2, 7], [[0, 1, 2], [0, 1], [0, 1, 2, 3]])
    held = states[-2].base
    assert states[-1].base_delta.keys() == held.keys()
    for kept in cohort.kept.values():
        for name, value in held.items():
            assert kept.base_delta[name].tobytes() == value.tobytes() == states[-1].base_delta[name].tobytes()


@ALL
def test_a_silent_client_and_a_cohort_of_one(method: Method) -> None:
    states, records, wanted, _ = run(method, [5, 9, 2, 7], [[0, 1, 2], [2]], silent=frozenset({1}))
    assert [[c.id for c in r.clients] for r in records] == [[0, 2], [2]]
    assert states[-1].held == {0: 1, 2: 2}
    assert all(np.isfinite(v).all() for v in effective(states[-1]).values())
    if method.exact:
        assert distance(effective(states[-1]), wanted[-1]) < 2e-5
    with pytest.raises(ReplyError, match="no usable reply"):
        run(method, [5], [[0]], silent=frozenset({0}))


@ALL
def test_what_is_counted_is_what_travels(method: Method) -> None:
    _, records, _, cohort = run(method, [5, 9, 2, 7], [[0, 1, 2, 3], [0, 1], [2, 3]])
    for record in records:
        assert record.uploaded_bytes == sum(c.uploaded_bytes for c in record.clients)
        for client in record.clients:
            values = 4 * client.uploaded_parameters
            assert values < client.uploaded_bytes <= values + 64 + 64 + 40
            assert 4 * client.downloaded_parameters < client.downloaded_bytes <= 4 * client.downloaded_parameters + 188
    assert cohort.seen.keys() == {2, 3}


@ALL
@pytest.mark.parametrize("cohorts", [[[0, 1, 2, 3]] * 3, [[0, 1, 2, 3]]])
def test_the_estimate_of_cost_is_what_travels(method: Method, cohorts: list[list[int]]) -> None:
    examples = [5, 9, 2, 7]
    _, records, _, cohort = run(method, examples, cohorts)
    layout = cohort.federation.layout
    full = sum(int(np.prod(shape)) for _, shape in layout.base)
    budgets = [p.rank_budget for p in population(method, examples)]
    cost = estimate_cost(
        layout, method, r=RANK, rank_budgets=budgets, num_server_rounds=len(cohorts), full_parameters=full
    )
    for name in ("uploaded_bytes", "uploaded_parameters", "downloaded_bytes", "downloaded_parameters"):
        least, greatest = getattr(cost, f"{name}_min"), getattr(cost, f"{name}_max")
        assert least <= sum(getattr(r, name) for r in records) <= greatest
        assert least <= getattr(cost, name) <= greatest
        assert least == greatest or method.select


@ALL
def test_the_scaling_of_a_client_is_the_server_s(method: Method) -> None:
    """With mixed ranks lora_alpha / r_k would differ from client to client."""
    state = ServerState(0, federation(method).initial)
    for profile in population(method, [5, 9, 2, 7]):
        start = method.dispatch(state, profile.rank)
        assert start.rank == profile.rank
        assert start.scaling == pytest.approx(state.adapter.scaling)


def test_hetlora_prunes_its_tail_for_good() -> None:
    method = METHODS["hetlora"]
    made = federation(method)
    start = replace(made.initial, factors={n: Factors(f.A, np.ones_like(f.B)) for n, f in made.initial.factors.items()})
    shrunk = replace(start, factors={n: Factors(f.A, 0.5 * f.B) for n, f in start.factors.items()})
    assert method.finish is not None
    assert method.finish(start, start, 1).mask is None
    mask = method.finish(start, shrunk, 1).mask
    assert mask is not None
    assert all(keep.tolist() == [True, True, False] for keep in mask.values())
    profile = population(method, [5])[0]
    zeros = {n: Factors(0 * f.A, 0 * f.B) for n, f in start.factors.items()}
    upload = Upload(1, 0, frozenset(FACTORS), 5, 0.5, mask, replace(start, factors=zeros))
    before = ServerState(0, start)
    reply = Reply(profile, Download(1, 0, frozenset(FACTORS), start), upload)
    state = method.server_step(before, method.reduce(before, [reply]), PLAIN.step)
    assert state.client_ranks == {0: 2}
    assert rank_of(state, profile) == 2


@pytest.mark.parametrize("criterion", ["contribution", "magnitude", "sensitivity", "random"])
def test_ablations_of_lora_a2(criterion: str) -> None:
    method = get_method("lora-a2", criterion=criterion, alternating=False)
    assert method.schedule(1) == method.schedule(2) == {"B"}
    states, _, wanted, cohort = run(method, [5, 9, 2, 7], [[0, 1, 2, 3], [0, 1]])
    assert distance(effective(states[-1]), wanted[-1]) < 2e-5
    masks = [upload.mask for _, upload in cohort.seen.values()]
    assert [sum(int(m.sum()) for m in mask.values()) for mask in masks if mask] == [6, 2]


@pytest.mark.parametrize("keep", [[False, True, True], [True, False, True], [False, False, False]])
def test_a_forged_pruning_is_refused(keep: list[bool]) -> None:
    class Forger(Cohort):
        def change(self, profile: ClientProfile, download: Download) -> Upload:
            honest = super().change(profile, download)
            mask = {name: np.array(keep) for name in honest.update.factors}
            return honest if profile.id else replace(honest, mask=mask)

    method = METHODS["hetlora"]
    made, profiles = federation(method), population(method, [5, 9])
    state, record = server_round(made, ServerState(0, made.initial), profiles, Forger(made, 0))
    assert "pruned otherwise" in record.refused[0]
    assert state.client_ranks == {1: 1}
