"""Laplace noise on uploads: what gets it, how much, and who refuses it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation import tiny_clients, tiny_model
from lora_a2.config.run import make_config
from lora_a2.core.algebra import initial_adapter
from lora_a2.core.randomness import generator
from lora_a2.core.transforms import Sending
from lora_a2.core.types import FACTORS, Factor, Layout, ModuleShape, ServerState
from lora_a2.errors import ConfigError
from lora_a2.federation.records import RoundRecord
from lora_a2.flower.options import read_options
from lora_a2.methods import METHODS, get_method
from lora_a2.methods.base import Method
from lora_a2.model.pretrained import Model
from lora_a2.privacy.laplace import LaplaceNoise
from lora_a2.simulation import make_plan, simulate

WAYS: list[frozenset[Factor]] = [frozenset({"A"}), frozenset({"B"}), frozenset({"A", "B"})]
ADAPTERS = [method for method in METHODS.values() if not (method.full or method.gradients)]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(7, 12)), min_size=1, max_size=3),
    st.integers(1, 4),
    st.sampled_from(WAYS),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_noise_is_on_what_is_uploaded_and_nothing_else(
    shapes: list[tuple[int, int]], rank: int, uploaded: frozenset[Factor], masked: bool, seed: int
) -> None:
    layout = Layout(tuple(ModuleShape(f"m{i}", *shape) for i, shape in enumerate(shapes)))
    rng = generator(seed, "test")
    update = initial_adapter(layout, rank, 16.0, rng, {"bias": np.zeros(3, np.float32)})
    mask = {m.name: rng.random(rank) < 0.5 for m in layout.modules} if masked else None
    noisy = LaplaceNoise(1.0).add(update, Sending(uploaded, mask, 1e-2, 5.0, lambda purpose: rng))
    assert (noisy.head["bias"] != 0).all()
    for name, factors in update.factors.items():
        for factor in ("A", "B"):
            changed = noisy.factors[name].slices(factor) != factors.slices(factor)
            for i in range(rank):
                expected = factor in uploaded and (mask is None or bool(mask[name][i]))
                assert changed[i].all() if expected else not changed[i].any()
            assert noisy.factors[name].get(factor).dtype == np.float32


def test_its_scale_is_the_published_one() -> None:
    """2·C·η / ε; the mean absolute value of Laplace noise is its scale, its standard deviation √2 times that."""
    layout = Layout((ModuleShape("m", 300, 200),))
    start = initial_adapter(layout, 100, 16.0, generator(0, "test"))
    noise = LaplaceNoise(epsilon=3.0, clipping_norm=5.0)
    noisy = noise.add(start, Sending(frozenset({"A", "B"}), None, 2e-3, 5.0, lambda purpose: generator(0, purpose)))
    for factor, rate in (("A", 2e-3), ("B", 1e-2)):
        added = noisy.factors["m"].get(factor) - start.factors["m"].get(factor)
        scale = 2 * 5.0 * rate / 3.0
        assert np.abs(added).mean() == pytest.approx(scale, rel=0.03)
        assert added.std() == pytest.approx(np.sqrt(2) * scale, rel=0.03)
        assert abs(added.mean()) < 0.03 * scale


@pytest.fixture(scope="module")
def model() -> Model:
    """A tiny one, which a run takes as it finds it."""
    return tiny_model()


def _rounds(model: Model, method: Method, **options: float) -> list[tuple[ServerState, RoundRecord]]:
    clients = tiny_clients()
    budget = 1 if method.select is not None else 3
    plan = make_plan(
        model, clients, method, num_server_rounds=2, r=3, rank_budget=budget, local_epochs=1, batch_size=4, **options
    )
    return list(simulate(model, clients, plan))


def _values(state: ServerState) -> dict[str, np.ndarray]:
    """Everything that a run has learnt."""
    factors = {f"{x}.{n}": f.get(x) for n, f in state.adapter.factors.items() for x in FACTORS}
    return {**factors, **state.base}


@pytest.mark.parametrize("method", ADAPTERS, ids=lambda m: m.name)
def test_every_method_runs_with_noise_the_same_each_time_and_sends_as_much(model: Model, method: Method) -> None:
    plain, noisy, again = (
        _rounds(model, method, **noise) for noise in ({}, {"laplace_epsilon": 6.0}, {"laplace_epsilon": 6.0})
    )
    first, other, repeated = (_values(runs[-1][0]) for runs in (plain, noisy, again))
    assert all((value == repeated[key]).all() for key, value in other.items())
    assert any((value != first[key]).any() for key, value in other.items())
    assert [r.uploaded_bytes for _, r in plain] == [r.uploaded_bytes for _, r in noisy]


def test_full_fine_tuning_and_real_nodes_refuse_it() -> None:
    full = next(method.name for method in METHODS.values() if method.full)
    with pytest.raises(ConfigError, match=r"^laplace-epsilon: it is for methods that train an adapter"):
        make_config({}, {"method": full, "laplace_epsilon": 1.0})
    with pytest.raises(ConfigError, match=r"^laplace-epsilon: it is for methods"):
        make_plan(tiny_model(), tiny_clients(), get_method(full), laplace_epsilon=1.0)
    for method in (m for m in METHODS.values() if m.gradients):
        with pytest.raises(ConfigError, match=r"^laplace-epsilon: .* uploads gradients without noise"):
            make_config({}, {"method": method.name, "laplace_epsilon": 1.0})
    with pytest.raises(ConfigError, match=r"^laplace-epsilon: this noise is drawn from the run's seed"):
        read_options({"laplace-epsilon": 1.0})
