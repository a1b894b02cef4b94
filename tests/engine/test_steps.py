"""At most so many steps in a round: the same ones as without a bound, up to the last, whoever else is in the pass."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine import _compare, _relative

from lora_a2.core.randomness import generator
from lora_a2.engine.local import CohortTraining, train_cohort
from lora_a2.engine.work import ClientTask, TrainingSettings, epoch_orders
from tiny import backbone, classifier, examples, random_adapter

SETTINGS = TrainingSettings(batch_size=3, learning_rate=2e-3, learning_rate_ratio=5.0)
ENGINE, LAYOUT = classifier(backbone("bert"), "bert")
COUNTS = st.integers(1, 20)


@settings(max_examples=200, deadline=None)
@given(COUNTS, st.integers(1, 4), st.integers(1, 5), st.integers(1, 3), st.integers(1, 30), st.integers(0, 9))
def test_orders_are_the_first_steps_of_all(
    count: int, epochs: int, batch: int, times: int, most: int, seed: int
) -> None:
    bounded = replace(SETTINGS, batch_size=batch, gradient_accumulation_steps=times, max_steps=most)
    size = bounded.step_examples

    def steps(orders: tuple[np.ndarray, ...]) -> list[list[int]]:
        return [order[i : i + size].tolist() for order in orders for i in range(0, len(order), size)]

    every = steps(epoch_orders(count, epochs, generator(seed, "orders")))
    found = steps(bounded.orders(count, epochs, generator(seed, "orders")))
    assert found == every[:most]
    assert bounded.steps(count, epochs) == len(found)
    unbounded = replace(bounded, max_steps=None)
    assert steps(unbounded.orders(count, epochs, generator(seed, "orders"))) == every


def tasks_of(counts: list[int], most: int, epochs: int) -> list[ClientTask]:
    bounded, start = replace(SETTINGS, max_steps=most), random_adapter(LAYOUT, rank=3)
    orders = [bounded.orders(n, epochs, generator(k, "orders")) for k, n in enumerate(counts)]
    return [ClientTask(start, examples(n, seed=k), None, orders[k]) for k, n in enumerate(counts)]


@pytest.mark.parametrize("most", [1, 3, 4])
def test_a_cohort_equals_the_reference(most: int) -> None:
    """Among them one that makes more steps than another which sees more examples."""
    _compare("bert", tasks_of([10, 9, 1, 4], most, 3), frozenset({"B"}), settings=SETTINGS)


@settings(max_examples=25, deadline=None)
@given(st.lists(COUNTS, min_size=2, max_size=4), st.integers(1, 9), st.integers(2, 4))
def test_clients_do_not_feel_each_other_epoch_by_epoch(counts: list[int], most: int, epochs: int) -> None:
    """Stopped after an epoch and gone on: in either part some have steps that others, before them in the pass, have not."""
    tasks = tasks_of(counts, most, epochs)
    training = CohortTraining(ENGINE, tasks, frozenset({"A", "B"}), SETTINGS)
    training.run(1)
    for task, result in zip(tasks, training.run(), strict=True):
        (alone,) = train_cohort(ENGINE, [task], frozenset({"A", "B"}), SETTINGS)
        assert _relative(result.adapter, alone.adapter, task.start) < 1e-3
        assert result.train_loss == pytest.approx(alone.train_loss, rel=1e-4)
