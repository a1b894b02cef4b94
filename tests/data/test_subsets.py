"""Held-out rows and subsets take from every class, and every client, what they should."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_a2.core.randomness import generator
from lora_a2.data.subsets import at_most, hold_out


@given(
    labels=st.lists(st.integers(0, 5), min_size=1, max_size=200),
    fraction=st.floats(0.05, 0.95),
    seed=st.integers(0, 20),
)
@settings(max_examples=60, deadline=None)
def test_hold_out_takes_its_share_of_every_class(labels: list[int], fraction: float, seed: int) -> None:
    numbers = np.array(labels)
    train, test = hold_out(numbers, None, fraction, generator(seed, "test"))
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(len(labels)))
    for label, size in zip(*np.unique(numbers, return_counts=True), strict=True):
        held = int((numbers[test] == label).sum())
        assert held < size
        assert abs(held - fraction * size) < 1 or held == size - 1
    again = hold_out(numbers, None, fraction, generator(seed, "test"))
    np.testing.assert_array_equal(test, again[1])


def test_hold_out_takes_its_share_of_every_client() -> None:
    rng = np.random.default_rng(0)
    labels, owners = rng.integers(0, 3, 400), rng.integers(0, 20, 400)
    clients = [f"u{owner}" for owner in owners]
    _, test = hold_out(labels, clients, 0.25, generator(0, "test"))
    for owner in range(20):
        assert abs((owners[test] == owner).sum() - 0.25 * (owners == owner).sum()) < 1
    assert abs(len(test) - 100) <= 1


@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=8), extra=st.integers(0, 150), seed=st.integers(0, 9))
@settings(max_examples=80, deadline=None)
def test_a_subset_is_as_even_as_the_classes_allow(sizes: list[int], extra: int, seed: int) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    limit = len(sizes) + extra
    rows = at_most(labels, limit, generator(seed, "test"))
    counts = np.bincount(labels[rows], minlength=len(sizes))
    assert counts.sum() == min(limit, sum(sizes))
    assert len(set(rows.tolist())) == len(rows)
    cut = counts[counts < sizes]
    if len(cut):
        assert cut.max() - cut.min() <= 1
        assert counts.max() <= cut.min() + 1
