"""Each method's simulator run against its second implementation in `naive.py`: mixed ranks, unequal data, changing cohorts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from lora_a2.core.types import ServerState, weight_name
from lora_a2.federation.population import Client
from lora_a2.federation.probes import DEFAULT_PROBE, PROBES, ProbeName
from lora_a2.methods import METHODS
from lora_a2.model.pretrained import Model
from lora_a2.simulation import ClientStates, make_plan, simulate
from naive import NAIVE, World
from naive import PROBES as NAIVE_PROBES
from reference import ReferenceClassifier, ReferenceWriter
from tiny import POOLING, backbone, clients, model_of
from writers import PACKED, WRITERS, whole_model, writing_clients, writing_model

ROUNDS = 3


def effective(state: ServerState) -> dict[str, np.ndarray]:
    """W − W0 of every target module."""
    base = state.base
    adapter = state.adapter.pair
    return {
        name: base.get(weight_name(name), np.float32(0)) + adapter.scaling * f.B @ f.A
        for name, f in adapter.factors.items()
    }


def close(
    got: dict[str, np.ndarray],
    expected: dict[str, np.ndarray],
    size: Callable[[np.ndarray], float] = np.max,
    tolerance: float = 2e-3,
) -> None:
    for name, value in expected.items():
        assert size(np.abs(got[name] - value)) <= tolerance * size(np.abs(value)) + 1e-7, name


def test_every_method_is_here_twice() -> None:
    assert NAIVE.keys() == METHODS.keys()


@pytest.mark.parametrize("name", METHODS)
def test_simulator_equals_the_equations(name: str) -> None:
    run_beside(name, NAIVE[name])


@pytest.mark.parametrize(
    ("name", "family"),
    [
        # One with a head of its own, and one whose head is its embeddings, for every method.
        *((name, family) for family in ("llama", "gemma") for name in METHODS),
        *(
            pytest.param(name, family, marks=() if family in PACKED else pytest.mark.slow)
            for family in WRITERS
            for name in ("fl-lora", "lora-a2", "flora")
            if family not in ("llama", "gemma")
        ),
    ],
)
def test_simulator_equals_the_equations_for_models_that_write(name: str, family: str) -> None:
    whole = whole_model(family)
    reference = ReferenceWriter(whole)  # before the network takes the model over
    run_beside(
        name,
        NAIVE[name],
        Fixture(writing_model(whole), writing_clients([9, 5, 12, 7]), reference, np.linalg.norm, 3e-2),
    )


@pytest.mark.parametrize("probe", [name for name in PROBES if name != DEFAULT_PROBE])
@pytest.mark.parametrize("clients_per_pass", [1, 2])
def test_simulator_equals_the_equations_with_each_probe(probe: ProbeName, clients_per_pass: int) -> None:
    assert PROBES.keys() == NAIVE_PROBES.keys()
    batches = 2 if probe == "gradient" else None
    local = NAIVE_PROBES[probe]
    run_beside(
        "lora-a2",
        lambda world: NAIVE["lora-a2"](world, local),  # type: ignore[call-arg]
        probe=probe,
        probe_batches=batches,
        clients_per_pass=clients_per_pass,
    )


TRAINING: dict[str, Any] = {
    "gradient_accumulation_steps": 2,
    "max_grad_norm": 0.5,
    "max_steps_per_round": 3,
    "gradient_checkpointing": True,
    "lr_scheduler_type": "cosine",
    "warmup_rounds": 1,
}


@pytest.mark.parametrize("name", METHODS)
def test_simulator_equals_the_equations_with_every_option_of_training(name: str) -> None:
    run_beside(name, NAIVE[name], **TRAINING)


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("most", [1, 2, 4, 5])
def test_simulator_equals_the_equations_where_steps_end_in_the_midst_of_an_epoch(probe: ProbeName, most: int) -> None:
    """Clients with 2, 3 or 4 steps in 2 epochs, or 6: in the probe, between the epochs, and in the second of them."""
    local = NAIVE_PROBES[probe]
    run_beside(
        "lora-a2",
        lambda world: NAIVE["lora-a2"](world, local),  # type: ignore[call-arg]
        probe=probe,
        max_steps_per_round=most,
        clients_per_pass=3,
    )


@dataclass(frozen=True)
class Fixture:
    """A model, its clients, and the slow twin of the model."""

    model: Model
    clients: tuple[Client, ...]
    reference: ReferenceClassifier | ReferenceWriter
    size: Callable[[np.ndarray], float] = np.max
    tolerance: float = 2e-3
    """Of what is compared: the largest number, or, for models in which AdamW makes a step of a gradient that is nearly zero and so
    of rounding, the norm."""


def labelling(family: str = "bert") -> Fixture:
    """Of a classifier."""
    model = model_of(backbone(family), family)
    head = {k: v.numpy() for k, v in model.network.objective.head.items()}
    return Fixture(model, clients([9, 5, 12, 7]), ReferenceClassifier(backbone(family), [], POOLING[family], head))


def run_beside(name: str, naive: Callable[[World], None], fixture: Fixture | None = None, **options: Any) -> None:
    """Rounds of the simulator and of a second implementation, compared after each."""
    method = METHODS[name]
    fixture = fixture or labelling()
    model, members = fixture.model, fixture.clients
    budget = [1, 3, 2, 4] if method.mixed_ranks else 4
    plan = make_plan(
        model,
        members,
        method,
        num_server_rounds=ROUNDS,
        local_epochs=2,
        batch_size=4,
        learning_rate=3e-3,
        learning_rate_ratio=2.0,
        r=4,
        rank_budget=budget if method.select is None or method.mixed_ranks else 2,
        fraction_train=0.75,
        **{"clients_per_pass": 2, **options},
    )
    initial = plan.federation.initial
    world = World(
        plan,
        members,
        fixture.reference,
        {n: f.A for n, f in initial.factors.items()},
        {n: f.B for n, f in initial.factors.items()},
        scaling=initial.scaling,
    )
    kept_states: ClientStates = {}
    for state, record in simulate(model, members, plan, kept=kept_states):
        world.round = record.server_round
        naive(world)
        close(effective(state), world.effective(), fixture.size, fixture.tolerance)
        close({n: f.A for n, f in state.adapter.factors.items()}, world.A, fixture.size) if method.private else None
    for client, kept in world.private.items():
        close({n: kept_states[client].private["B", n] for n in kept}, kept, fixture.size, fixture.tolerance)
    assert world.private.keys() == kept_states.keys()
    assert max(np.abs(v).max() for v in world.effective().values()) > 1e-3 or method.private
