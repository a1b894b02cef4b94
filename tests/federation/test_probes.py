"""Probes: what each leaves selected and trained, over unequal data and cohorts; the simulator's twins are in test_naive.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_a2 import codec
from lora_a2.config.run import RunConfig
from lora_a2.core.randomness import generator
from lora_a2.core.selection import CRITERIA
from lora_a2.core.types import EVERYTHING, Adapter, Factor, ServerState, Upload
from lora_a2.engine.local import CohortTraining
from lora_a2.engine.work import ClientTask, TrainingSettings, epoch_orders
from lora_a2.errors import ConfigError
from lora_a2.federation.client import client_round, upload_schema
from lora_a2.federation.holdings import Outbox
from lora_a2.federation.loop import Plan
from lora_a2.federation.population import Client
from lora_a2.federation.probes import PROBES, ProbeName, get_probe
from lora_a2.methods import METHODS, get_method
from lora_a2.model.pretrained import random_head
from lora_a2.simulation import make_plan, simulate
from reference import ReferenceClassifier, descend_reference
from tiny import POOLING, backbone, classifier, clients, examples, model_of, random_adapter

SELECTING = [name for name, method in METHODS.items() if method.select is not None]
SETTINGS = TrainingSettings(batch_size=4, learning_rate=2e-3, learning_rate_ratio=5.0, weight_decay=0.1)
WAYS: list[frozenset[Factor]] = [frozenset({"A"}), frozenset({"B"}), frozenset({"A", "B"})]
MODEL = model_of(backbone("bert"), "bert")
RANK = 3


def plan_of(members: tuple[Client, ...], method: Any = "lora-a2", **options: Any) -> Plan:
    usual: dict[str, Any] = {"local_epochs": 2, "batch_size": 4, "learning_rate": 3e-3, "r": RANK, "rank_budget": 1}
    return make_plan(MODEL, members, method, **(usual | options))


def one_round(plan: Plan, members: tuple[Client, ...], state: ServerState) -> list[bytes]:
    """The uploads of all clients, in one cohort."""
    work = [(p, c.train) for p, c in zip(plan.profiles, members, strict=True)]
    outbox = Outbox(plan.federation, state)
    answers = client_round(plan.federation, MODEL.network, work, [outbox.download(w[0])[1] for w in work])
    return [data for data, _ in answers]


def decoded(plan: Plan, state: ServerState, data: bytes) -> Upload:
    start = plan.federation.initial
    return codec.decode_upload(data, upload_schema(plan.federation), start.rank, start.lora_alpha)


def begun(plan: Plan, rounds: int) -> ServerState:
    """A state whose B is not zero; its next round trains B if `rounds` is even."""
    state = plan.start()
    adapter = random_adapter(MODEL.layout, RANK, seed=rounds)
    held = {profile.id: EVERYTHING for profile in plan.profiles}
    return replace(state, server_round=rounds, adapter=adapter, held=held)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(1, 11), min_size=1, max_size=3), st.integers(1, 3), st.integers(0, 1))
def test_reuse_with_a_budget_of_all_slices_is_training_without_selection(
    sizes: list[int], epochs: int, rounds: int
) -> None:
    """Alone a client sends the same values bit for bit; beside others, whose batches may line up otherwise, nearly so."""
    members, method = clients(sizes), get_method("lora-a2")
    probed = plan_of(members, rank_budget=RANK, local_epochs=epochs, probe="reuse")
    plain = plan_of(members, replace(method, select=None), rank_budget=RANK, local_epochs=epochs)
    state = begun(plain, rounds)
    for got, expected in zip(one_round(probed, members, state), one_round(plain, members, state), strict=True):
        a, b = decoded(probed, state, got), decoded(plain, state, expected)
        assert a.mask is None or all(m.all() for m in a.mask.values())
        assert a.train_loss == pytest.approx(b.train_loss, rel=1e-6)
        for name, f in b.update.factors.items():
            for factor in a.shared:
                pair = a.update.factors[name].get(factor), f.get(factor)
                if len(sizes) == 1:
                    assert np.array_equal(*pair)
                np.testing.assert_allclose(*pair, rtol=1e-3, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(SELECTING),
    st.lists(st.integers(1, 11), min_size=1, max_size=3),
    st.sampled_from(list(PROBES)),
    st.sampled_from(list(CRITERIA)),
    st.integers(1, RANK),
    st.integers(0, 1),
)
def test_every_probe_and_criterion_sends_a_budget_of_slices_the_same_twice(
    name: str, sizes: list[int], probe: ProbeName, criterion: str, budget: int, rounds: int
) -> None:
    members = clients(sizes)
    choosable = "criterion" in {option.name for option in METHODS[name].options}
    method = get_method(name, criterion=criterion if choosable else None)
    plan = plan_of(members, method, probe=probe, rank_budget=budget)
    state = begun(plan, rounds)
    uploads = one_round(plan, members, state)
    assert uploads == one_round(plan, members, state)
    for data in uploads:
        upload = decoded(plan, state, data)
        assert upload.mask is not None
        assert sum(m.sum() for m in upload.mask.values()) == budget * len(plan.federation.layout.modules)
        for name, f in upload.update.factors.items():
            for factor in upload.shared:
                moved = f.slices(factor).any(1)
                assert not moved[~upload.mask[name]].any()
                assert moved[upload.mask[name]].all()


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 11), min_size=2, max_size=3), st.sampled_from(list(PROBES)), st.integers(0, 1))
def test_clients_of_a_cohort_do_not_feel_each_other(sizes: list[int], probe: ProbeName, rounds: int) -> None:
    members = clients(sizes)
    plan = plan_of(members, probe=probe)
    state = begun(plan, rounds)
    for k, data in enumerate(one_round(plan, members, state)):
        alone = replace(plan, profiles=plan.profiles[k : k + 1])
        (single,) = one_round(alone, members[k : k + 1], state)
        a, b = decoded(plan, state, data), decoded(plan, state, single)
        assert a.mask is not None
        assert b.mask is not None
        assert a.train_loss == pytest.approx(b.train_loss, rel=1e-4)
        shared = sum(int((a.mask[n] & b.mask[n]).sum()) for n in a.mask)
        assert shared >= sum(int(m.sum()) for m in a.mask.values()) - 1  # two slices may tie to the last bit


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("trainable", WAYS, ids=lambda w: "".join(sorted(w)))
def test_descent_equals_the_reference(family: str, trainable: frozenset[Factor]) -> None:
    """Clients with more batches than asked for, and with fewer; a merged start, and of unequal ranks."""
    engine, layout = classifier(backbone(family), family)
    reference = ReferenceClassifier(backbone(family), [], POOLING[family], random_head(3, 16, 4.0, seed=0))
    common = random_adapter(layout, 3)
    for starts in ([common] * 3, [random_adapter(layout, r, seed=r) for r in (1, 4, 2)]):
        tasks = [
            ClientTask(start, examples(n, seed=n), None, epoch_orders(n, 1, generator(n, "orders")))
            for start, n in zip(starts, (5, 14, 2), strict=True)
        ]
        got = CohortTraining(engine, tasks, trainable, SETTINGS).descend(3)
        for task, result in zip(tasks, got, strict=True):
            order, data = task.orders[0], task.examples
            expected = descend_reference(
                reference,
                task.start,
                data.input_ids,
                data.labels,
                [order[i : i + 4] for i in range(0, len(order), 4)][:3],
                trainable,
                {"A": SETTINGS.learning_rate, "B": SETTINGS.learning_rate * SETTINGS.learning_rate_ratio},
            )
            _close_moves(result.adapter, expected, task.start)


def _close_moves(got: Adapter, expected: Adapter, start: Adapter) -> None:
    """Sign-like steps: where a gradient is nearly zero its sign is noise, so the slices' lengths are compared."""
    for name, f in expected.factors.items():
        for factor in ("A", "B"):
            moves = [
                np.linalg.norm(x.factors[name].slices(factor) - start.factors[name].slices(factor), axis=1)
                for x in (got, expected)
            ]
            np.testing.assert_allclose(*moves, rtol=1e-2, atol=1e-7)
            assert f.get(factor).shape[0] != f.get(factor).shape[1]


@pytest.mark.parametrize("probe", PROBES)
def test_going_on_from_a_state_gives_the_same_bytes(probe: ProbeName) -> None:
    members = clients([7, 12, 4])
    plan = plan_of(members, probe=probe, num_server_rounds=3, clients_per_pass=2)
    whole = list(simulate(MODEL, members, plan))
    (rest,) = simulate(MODEL, members, plan, state=whole[1][0])
    for name, f in whole[2][0].adapter.factors.items():
        assert f.A.tobytes() == rest[0].adapter.factors[name].A.tobytes()
        assert f.B.tobytes() == rest[0].adapter.factors[name].B.tobytes()
    assert rest[1].clients == whole[2][1].clients


def test_probes_choose_differently_and_reuse_trains_an_epoch_less() -> None:
    members = clients([11, 9])
    uploads = {name: one_round(plan_of(members, probe=name), members, plan_of(members).start()) for name in PROBES}
    assert len({u[0] for u in uploads.values()}) == len(PROBES)


def test_names_are_those_of_the_table() -> None:
    assert tuple(PROBES) == get_args(ProbeName)
    for name in PROBES:
        assert RunConfig(probe=name).probe == name


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ({"method": "fl-lora", "probe": "reuse"}, "probe: fl-lora selects no ranks and has nothing to probe for"),
        ({"method": "fl-lora", "probe_batches": 2}, "probe: fl-lora selects no ranks"),
        ({"probe": "reuse", "probe_batches": 2}, "probe-batches: only the gradient probe counts batches"),
        ({"probe_batches": 2}, "add probe gradient, or leave it out"),
        ({"probe": "none"}, "probe: 'none' is not one of epoch, reuse, gradient."),
    ],
)
def test_refusals_are_one_line(given_: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as config:
        RunConfig(**given_)
    with pytest.raises(ConfigError) as plan:
        get_probe(METHODS[given_.get("method", "lora-a2")], given_.get("probe"), given_.get("probe_batches"))
    for error in (config, plan):
        assert expected in str(error.value)
        assert "\n" not in str(error.value)
