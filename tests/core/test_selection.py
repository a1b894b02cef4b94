"""Rank selection against explicitly formed outer products."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_a2.core.algebra import initial_adapter
from lora_a2.core.randomness import generator
from lora_a2.core.selection import contribution, select_top, top_ranks
from lora_a2.core.types import Adapter, Factor, Factors, Layout, ModuleShape

sides = st.tuples(st.integers(1, 7), st.integers(1, 7)).filter(lambda s: s[0] != s[1])
layouts = st.lists(sides, min_size=1, max_size=4).map(
    lambda shapes: Layout(tuple(ModuleShape(f"m{i}", d_out, d_in) for i, (d_out, d_in) in enumerate(shapes)))
)
ways = st.sampled_from([frozenset({"A"}), frozenset({"B"}), frozenset({"A", "B"})])
seeds = st.integers(0, 10**6)
UNUSED = np.random.default_rng(0)
"""Contributions are not drawn."""


def random_adapter(layout: Layout, rank: int, seed: int) -> Adapter:
    start = initial_adapter(layout, rank, 16.0, generator(seed, "adapter"))
    rng = generator(seed, "b")
    return Adapter({n: Factors(f.A, rng.standard_normal(f.B.shape, np.float32)) for n, f in start.factors.items()}, 16)


@settings(max_examples=100, deadline=None)
@given(layouts, st.integers(1, 6), ways, seeds)
def test_scores_are_norms_of_outer_products(layout: Layout, rank: int, trainable: frozenset[Factor], seed: int) -> None:
    start, probed = random_adapter(layout, rank, seed), random_adapter(layout, rank, seed + 1)
    scores = contribution(start, probed, trainable, UNUSED)
    assert list(scores) == [m.name for m in layout.modules]
    for name, old in start.factors.items():
        new = probed.factors[name]
        for i in range(rank):
            parts = []
            if "B" in trainable:
                parts.append(np.linalg.norm(np.outer(new.B[:, i] - old.B[:, i], old.A[i])))
            if "A" in trainable:
                parts.append(np.linalg.norm(np.outer(old.B[:, i], new.A[i] - old.A[i])))
            np.testing.assert_allclose(scores[name][i], np.linalg.norm(parts), rtol=1e-5)


@settings(max_examples=100, deadline=None)
@given(layouts, st.integers(1, 6), ways, seeds, st.data())
def test_the_best_of_the_whole_model_are_selected(
    layout: Layout, rank: int, trainable: frozenset[Factor], seed: int, data: st.DataObject
) -> None:
    budget = data.draw(st.integers(1, rank))
    start, probed = random_adapter(layout, rank, seed), random_adapter(layout, rank, seed + 1)
    mask = select_top(contribution)(start, probed, trainable, budget, generator(seed, "select"))
    assert list(mask) == [m.name for m in layout.modules]
    assert all(m.shape == (rank,) and m.dtype == np.bool_ for m in mask.values())
    assert sum(int(m.sum()) for m in mask.values()) == budget * len(layout.modules)
    scores = contribution(start, probed, trainable, UNUSED)
    taken = np.concatenate([scores[n][m] for n, m in mask.items()])
    left = np.concatenate([scores[n][~m] for n, m in mask.items()])
    assert not left.size or taken.min() >= left.max()


def test_ranks_compete_across_modules() -> None:
    """A module may get no rank at all, and another all of its own."""
    scores = {"x": np.array([1, 2], np.float32), "y": np.array([5, 4], np.float32), "z": np.array([3, 0], np.float32)}
    mask = top_ranks(scores, 3)
    assert {name: m.tolist() for name, m in mask.items()} == {
        "x": [False, False],
        "y": [True, True],
        "z": [True, False],
    }


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=12, max_size=12), st.integers(0, 12))
def test_ties_go_to_the_earlier_module_and_the_lower_index(values: list[int], count: int) -> None:
    flat = np.array(values, np.float32)
    mask = top_ranks(dict(zip("abc", flat.reshape(3, 4), strict=True)), count)
    expected = sorted(range(12), key=lambda i: (-values[i], i))[:count]
    assert np.flatnonzero(np.concatenate(list(mask.values()))).tolist() == sorted(expected)


def test_a_start_with_zero_b_scores_every_a_slice_zero() -> None:
    """Why B goes first: while B is zero, no change of A changes the model."""
    layout = Layout((ModuleShape("m", 3, 5),))
    start = initial_adapter(layout, 4, 16.0, generator(0, "adapter"))
    probed = random_adapter(layout, 4, 1)
    assert not contribution(start, probed, frozenset({"A"}), UNUSED)["m"].any()
    assert contribution(start, probed, frozenset({"B"}), UNUSED)["m"].all()
