"""FedProx and penalties in general: the engine against the slow trainer, and autograd against closed forms."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_a2.core.randomness import generator
from lora_a2.engine.local import train_cohort
from lora_a2.engine.penalty import penalty_gradient
from lora_a2.engine.work import ClientTask, TrainingSettings, epoch_orders
from lora_a2.errors import ConfigError
from lora_a2.federation.proximal import proximal
from lora_a2.methods import METHODS
from lora_a2.methods.base import Penalty
from lora_a2.simulation import make_plan, simulate
from reference import ReferenceClassifier, train_reference
from tiny import POOLING, backbone, classifier, clients, examples, model_of, random_adapter

PENALTIES = {"proximal": proximal(0.3), "hetlora": METHODS["hetlora"].penalties[0]}


@pytest.mark.parametrize("name", PENALTIES)
@settings(max_examples=30, deadline=None)
@given(rank=st.integers(1, 5), d_in=st.integers(1, 6), d_out=st.integers(7, 9), seed=st.integers(0, 999))
def test_a_closed_form_is_what_autograd_finds(name: str, rank: int, d_in: int, d_out: int, seed: int) -> None:
    rng = np.random.default_rng(seed)

    def values() -> dict[tuple[str, str], torch.Tensor]:
        shapes = {("A", "m"): (rank, d_in), ("B", "m"): (rank, d_out), ("head", "bias"): (3,)}
        return {key: torch.tensor(rng.standard_normal(shape), dtype=torch.float64) for key, shape in shapes.items()}

    trained, received = values(), values()
    penalty = PENALTIES[name]
    closed = penalty_gradient(penalty, trained, received)
    automatic = penalty_gradient(Penalty(penalty.value), trained, received)
    for key, value in trained.items():
        zero = torch.zeros_like(value)
        torch.testing.assert_close(closed.get(key, zero), automatic.get(key, zero), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("trainable", [frozenset({"A", "B"}), frozenset({"B"})])
@pytest.mark.parametrize("closed", [False, True])
def test_the_engine_trains_as_the_slow_trainer(masked: bool, trainable: frozenset[Any], closed: bool) -> None:
    mu, network = 40.0, backbone("bert")
    engine, layout = classifier(backbone("bert"), "bert")
    start, data = random_adapter(layout, 3), examples(10)
    mask = {m.name: np.array([True, False, True]) for m in layout.modules} if masked else None
    orders = epoch_orders(len(data), 2, generator(0, "train", 1, 0))
    penalty = proximal(mu) if closed else Penalty(proximal(mu).value)
    settings = TrainingSettings(4, 1e-2, 2.0, 0.01, (penalty,))
    [result] = train_cohort(engine, [ClientTask(start, data, mask, orders)], trainable, settings)
    reference = ReferenceClassifier(
        network, [], POOLING["bert"], {k: v.numpy() for k, v in engine.objective.head.items()}
    )
    origin = {(n, x): torch.tensor(f.get(x)) for n, f in start.factors.items() for x in ("A", "B")}

    def term(values: dict[tuple[str, str], torch.Tensor]) -> torch.Tensor:
        return sum(mu / 2 * (values[key] - old).square().sum() for key, old in origin.items())  # type: ignore[return-value]

    options = {"batch_size": 4, "learning_rate": 1e-2, "ratio": 2.0, "weight_decay": 0.01}
    expected = train_reference(
        reference, start, data.input_ids, data.labels, orders, trainable, mask, **options, penalty=term
    )
    without = train_reference(reference, start, data.input_ids, data.labels, orders, trainable, mask, **options)
    for key, values in expected.tensors.items():
        np.testing.assert_allclose(result.adapter.tensors[key], values, atol=3e-4)
    assert (without.tensors - start.tensors).norm() > 1.1 * (expected.tensors - start.tensors).norm()


@pytest.mark.parametrize("method", [m for m in METHODS.values() if not m.full], ids=lambda m: m.name)
def test_every_lora_method_takes_it_and_moves_less(method: Any) -> None:
    def moved(mu: float) -> float:
        model, members = model_of(backbone("bert"), "bert"), clients([9, 5])
        plan = make_plan(
            model,
            members,
            method,
            num_server_rounds=2,
            r=2,
            rank_budget=2,
            batch_size=4,
            learning_rate=5e-3,
            proximal_mu=mu,
        )
        records = [record for _, record in simulate(model, members, plan)]
        return sum(c.update_norm for c in records[-1].clients)

    assert moved(500.0) < 0.95 * moved(0.0)


def test_full_fine_tuning_refuses_it() -> None:
    model, members = model_of(backbone("bert"), "bert"), clients([9, 5])
    with pytest.raises(ConfigError, match=r"^proximal-mu: it is for methods that train an adapter"):
        make_plan(model, members, "full", proximal_mu=0.1)
    assert replace(proximal(1.0), gradient=None).gradient is None
