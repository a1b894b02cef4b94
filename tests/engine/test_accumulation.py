"""Gradients added up over batches: those of one larger batch, in examples and in learnt tokens, whoever sits a step out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine import _mask, _relative

from lora_a2.core.randomness import generator
from lora_a2.core.types import Factor, Layout
from lora_a2.engine.full import train_full
from lora_a2.engine.local import CohortTraining, train_cohort
from lora_a2.engine.network import Network
from lora_a2.engine.work import ClientTask, TokenizedExamples, TrainingSettings, epoch_orders
from lora_a2.methods import METHODS
from lora_a2.model.pretrained import random_head
from tiny import backbone, classifier, examples, random_adapter
from writers import whole_model, writing_network, written

SMALL = TrainingSettings(2, learning_rate=2e-3, learning_rate_ratio=5.0, gradient_accumulation_steps=3)
LARGE = replace(SMALL, batch_size=6, gradient_accumulation_steps=1)
WAYS: list[frozenset[Factor]] = [frozenset({"A"}), frozenset({"B"}), frozenset({"A", "B"})]
KINDS = ("bert", "rembert", "llama", "bloom")
"""A classifier and a model that writes, each packed and padded."""


def network_of(kind: str) -> tuple[Network, Layout]:
    return writing_network(whole_model(kind)) if kind in ("llama", "bloom") else classifier(backbone(kind), kind)


def data_of(kind: str, count: int, seed: int) -> TokenizedExamples:
    return written(count, seed) if kind in ("llama", "bloom") else examples(count, seed=seed)


def tasks_of(kind: str, layout: Layout, counts: list[int], masked: bool = False, epochs: int = 2) -> list[ClientTask]:
    start = random_adapter(layout, rank=3)
    if kind == "bert":
        start = replace(start, head=random_head(3, 16, 4.0, seed=0))
    return [
        ClientTask(
            start,
            data_of(kind, n, k),
            _mask(start, k) if masked else None,
            epoch_orders(n, epochs, generator(k, "orders")),
        )
        for k, n in enumerate(counts)
    ]


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest distance of two clients' gradients (K, P), over their norms."""
    scale = other.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return float(((one - other).norm(dim=1, keepdim=True) / scale).max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trainable", WAYS, ids=lambda w: "".join(sorted(w)))
@pytest.mark.parametrize("masked", [False, True])
def test_the_gradient_is_that_of_the_larger_batch(kind: str, trainable: frozenset[Factor], masked: bool) -> None:
    """Clients that drop out, and one whose epoch ends, with few batches in its step, while others are in the midst of theirs."""
    network, layout = network_of(kind)
    tasks = tasks_of(kind, layout, [13, 7, 1, 12], masked)
    small, large = (CohortTraining(network, tasks, trainable, s)._gradients(0, None) for s in (SMALL, LARGE))
    steps = 0
    for (clients, one), (others, other) in zip(small, large, strict=True):
        assert clients == others
        assert apart(one, other) < 1e-6
        steps += 1
    assert steps == 6


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["bert", "llama"]),
    st.lists(st.integers(1, 17), min_size=1, max_size=4),
    st.integers(1, 4),
    st.integers(1, 5),
)
def test_training_is_that_of_the_larger_batch(kind: str, counts: list[int], batch: int, times: int) -> None:
    network, layout = SHARED[kind]
    tasks = tasks_of(kind, layout, counts)
    small = replace(SMALL, batch_size=batch, gradient_accumulation_steps=times, penalties=METHODS["hetlora"].penalties)
    large = replace(small, batch_size=batch * times, gradient_accumulation_steps=1)
    found, expected = (train_cohort(network, tasks, frozenset({"A", "B"}), s) for s in (small, large))
    for task, one, other in zip(tasks, found, expected, strict=True):
        # In the norm: where a gradient is nearly zero, AdamW makes a step of its rounding.
        for name, f in other.adapter.factors.items():
            for factor in ("A", "B"):
                moved = np.linalg.norm(f.get(factor) - task.start.factors[name].get(factor))
                assert np.linalg.norm(one.adapter.factors[name].get(factor) - f.get(factor)) <= 0.05 * moved
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-5)


SHARED = {kind: network_of(kind) for kind in ("bert", "llama")}


def test_one_batch_a_step_is_the_same_bit_for_bit() -> None:
    network, layout = SHARED["bert"]
    tasks = tasks_of("bert", layout, [5, 3])
    plain, one = (
        train_cohort(network, tasks, frozenset({"B"}), replace(LARGE, gradient_accumulation_steps=n)) for n in (1, 9)
    )
    for a, b in zip(plain, one, strict=True):
        assert all(a.adapter.factors[n].B.tobytes() == f.B.tobytes() for n, f in b.adapter.factors.items())


@pytest.mark.parametrize("kind", KINDS)
def test_training_of_every_weight_is_that_of_the_larger_batch(kind: str) -> None:
    network, layout = network_of(kind)
    (task,) = tasks_of(kind, layout, [13])
    (small, head, loss), (large, other_head, other_loss) = (train_full(network, task, {}, s) for s in (SMALL, LARGE))
    assert loss == pytest.approx(other_loss, rel=1e-5)
    for found, expected in ((small, large), (head, other_head)):
        distances = [np.abs(found[name] - value).ravel() for name, value in expected.items()]
        # AdamW makes a whole step of a gradient that is nothing but rounding, as that of a bias of keys.
        assert not distances or np.median(np.concatenate(distances)) < 1e-6


def test_a_probe_by_gradients_counts_steps() -> None:
    network, layout = SHARED["bert"]
    tasks = tasks_of("bert", layout, [13, 4], epochs=1)
    one, other = (CohortTraining(network, tasks, frozenset({"B"}), s).descend(2) for s in (SMALL, LARGE))
    for task, a, b in zip(tasks, one, other, strict=True):
        assert _relative(a.adapter, b.adapter, task.start) < 1e-4


def test_a_worker_is_asked_before_every_batch() -> None:
    asked: list[int] = []
    network, layout = SHARED["bert"]
    tasks = tasks_of("bert", layout, [13], epochs=1)
    train_cohort(network, tasks, frozenset({"B"}), replace(SMALL, between_steps=lambda: asked.append(1)))
    assert len(asked) == 3 + 3 + 1
