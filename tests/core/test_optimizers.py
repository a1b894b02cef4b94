"""Server optimizers against loops over single values, from the papers' algorithms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_a2.core.algebra import initial_adapter
from lora_a2.core.optimizers import FIRST, OPTIMIZERS, PLAIN, SECOND, Rates, ServerOptimizer
from lora_a2.core.reduce import Mean
from lora_a2.core.tensors import Tensors
from lora_a2.core.types import Layout, ModuleShape, ServerState

LAYOUT = Layout((ModuleShape("x", 3, 5), ModuleShape("y", 7, 2)), (("bias", (4,)),))
RATES = Rates(0.3, 0.8, 0.95, 1e-2)


def slow(name: str, updates: list[float | None]) -> list[float]:
    """The change of one value in each round; None: nobody uploaded there."""
    m, v, changes = 0.0, RATES.epsilon**2, []
    for d in updates:
        if d is None:
            changes.append(0.0)
            continue
        if name == "sgd":
            changes.append(RATES.learning_rate * d)
            continue
        if name == "momentum":
            m = RATES.momentum * m + d
            changes.append(RATES.learning_rate * m)
            continue
        m = RATES.momentum * m + (1 - RATES.momentum) * d
        if name == "adam":
            v = RATES.second_momentum * v + (1 - RATES.second_momentum) * d * d
        else:
            v = v - (1 - RATES.second_momentum) * d * d * (0 if v == d * d else math.copysign(1, v - d * d))
        changes.append(RATES.learning_rate * m / (math.sqrt(v) + RATES.epsilon))
    return changes


def random_mean(state: ServerState, rng: np.random.Generator) -> Mean:
    """A mean in which some rank slices were not uploaded, and one factor was not at all."""
    left_out = rng.choice(["A", "B", "none"])
    update, uploaded = {}, {}
    for (kind, name), values in state.adapter.tensors.items():
        if kind == left_out:
            continue
        there = np.ones((), bool) if kind == "head" else rng.random(2) < 0.6
        there = there if kind == "head" else there[None, :] if kind == "B" else there[:, None]
        update[kind, name] = np.where(there, rng.standard_normal(values.shape), 0.0)
        uploaded[kind, name] = there
    return Mean(Tensors(update), uploaded)


@pytest.mark.parametrize("name", OPTIMIZERS)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), rounds=st.integers(1, 4))
def test_every_value_moves_as_the_algorithm_says(name: str, seed: int, rounds: int) -> None:
    """And neither moves, nor do its moments, in a round in which nobody uploaded there."""
    rng = np.random.default_rng(seed)
    start = initial_adapter(LAYOUT, 2, 16.0, rng, {"bias": np.zeros(4, np.float32)})
    state, optimizer = ServerState(0, start), ServerOptimizer(name, RATES)
    means, states = [], [state]
    for _ in range(rounds):
        means.append(random_mean(state, rng))
        state = optimizer.step(state, means[-1])
        states.append(state)
    for key, values in start.tensors.items():
        for at in np.ndindex(values.shape):
            updates = [
                float(m.update[key][at])
                if key in m.update and np.broadcast_to(m.uploaded[key], values.shape)[at]
                else None
                for m in means
            ]
            for number, change in enumerate(slow(name, updates)):
                old, new = (float(states[number + i].adapter.tensors[key][at]) for i in (0, 1))
                assert new - old == pytest.approx(change, abs=2e-6 * (1 + abs(old)), rel=1e-4)
                if updates[number] is None:
                    assert new == old
    for before, after, mean in zip(states, states[1:], means, strict=False):
        for moment in (FIRST, SECOND):
            for key, there in mean.uploaded.items():
                named = moment + key[0], key[1]
                if named in before.extra:
                    assert np.array_equal(*(np.where(there, 0, s.extra[named]) for s in (before, after)))


def test_plain_sgd_adds_the_mean_and_keeps_nothing() -> None:
    """In float64, rounded once: bit for bit FedAvg's."""
    rng = np.random.default_rng(0)
    start = initial_adapter(LAYOUT, 2, 16.0, rng, {"bias": np.zeros(4, np.float32)})
    mean = Mean(
        start.tensors.map(lambda v: rng.standard_normal(v.shape)), {k: np.ones((), bool) for k in start.tensors}
    )
    state = PLAIN.step(ServerState(0, start), mean)
    assert PLAIN.plain and not ServerOptimizer("sgd", Rates(0.5)).plain and not ServerOptimizer("adam").plain
    assert not state.extra
    for key, values in start.tensors.items():
        assert np.array_equal(state.adapter.tensors[key], (values + mean.update[key]).astype(np.float32))
