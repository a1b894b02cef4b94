"""Splits over clients: nobody's example is lost or doubled, and the published statistics come out."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_a2.core.randomness import generator
from lora_a2.data.partition import (
    KINDS,
    IntArray,
    Partition,
    dirichlet,
    label_counts,
    natural,
    partition,
    pathological,
)
from lora_a2.data.shares import dirichlet_shares
from lora_a2.errors import ConfigError

ALPHAS = st.sampled_from([1e-300, 1e-6, 0.001, 0.01, 0.1, 0.5, 1.0, 100.0, 1e15])


def labels_of(num_classes: int, each: int) -> IntArray:
    return np.repeat(np.arange(num_classes), each)


def assert_covers(parts: Iterable[IntArray], size: int) -> None:
    """Every index once, sorted at each client."""
    parts = list(parts)
    for part in parts:
        assert part.dtype == np.int64
        assert (np.diff(part) > 0).all()
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(size))


def same(left: Partition, right: Partition) -> bool:
    pairs = [*zip(left.train, right.train, strict=True), *zip(left.test, right.test, strict=True)]
    return left.names == right.names and all(np.array_equal(a, b) for a, b in pairs)


@given(
    kind=st.sampled_from([kind for kind in KINDS if kind != "natural"]),
    labels=st.lists(st.integers(0, 4), min_size=40, max_size=120),
    pairs=st.integers(1, 4),
    alpha=ALPHAS,
    seed=st.integers(0, 99),
)
@settings(max_examples=150, deadline=None)
def test_every_example_goes_to_exactly_one_client(
    kind: str, labels: list[int], pairs: int, alpha: float, seed: int
) -> None:
    train = np.array([*labels, *range(5), *range(5)])  # the pathological split needs two of a class
    test = np.array(labels[:30])
    pairs = min(pairs, 3) if kind == "pathological" else pairs
    split = partition(kind, train, test, 2 * pairs, generator(seed, "split"), alpha=alpha)
    assert len(split.train) == len(split.test) == 2 * pairs
    assert split.names == tuple(f"client-{k}" for k in range(2 * pairs))
    assert_covers(split.train, len(train))
    assert_covers(split.test, len(test))
    assert min(len(part) for part in split.train) >= 1
    assert same(split, partition(kind, train, test, 2 * pairs, generator(seed, "split"), alpha=alpha))


@given(alpha=ALPHAS.filter(lambda a: a >= 0.1), seed=st.integers(0, 99), each=st.integers(20, 60))
@settings(max_examples=40, deadline=None)
def test_dirichlet_splits_train_and_test_alike(alpha: float, seed: int, each: int) -> None:
    train, test = labels_of(12, each), labels_of(12, 15)
    split = dirichlet(train, test, 4, generator(seed, "split"), alpha=alpha)
    difference = label_counts(split.train, train, 12) / each - label_counts(split.test, test, 12) / 15
    assert np.abs(difference).max() <= 1 / each + 1 / 15 + 1e-12


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "natural"])
def test_another_seed_gives_another_split(kind: str) -> None:
    labels = labels_of(6, 20)
    splits = [partition(kind, labels, labels, 4, generator(seed, "split")) for seed in (0, 1)]
    assert not same(*splits)


@pytest.mark.parametrize("alpha", [5e-324, 1e-300, 1e-9, 0.01, 0.5, 1.0, 1e6, 1.7e308])
def test_shares_are_finite_and_sum_to_one(alpha: float) -> None:
    shares = dirichlet_shares(50, 30, alpha, generator(0, "shares"))
    assert np.isfinite(shares).all() and (shares >= 0).all()
    np.testing.assert_allclose(shares.sum(axis=1), 1.0, rtol=1e-12)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 2.0])
def test_shares_have_the_moments_of_a_dirichlet(alpha: float) -> None:
    shares = dirichlet_shares(20_000, 5, alpha, generator(0, "moments"))
    variance = (1 / 5) * (4 / 5) / (5 * alpha + 1)
    np.testing.assert_allclose(shares.mean(axis=0), 0.2, atol=0.01)
    np.testing.assert_allclose(shares.var(axis=0), variance, rtol=0.05)


def test_tiny_alpha_gives_whole_classes_and_fills_every_client() -> None:
    labels = labels_of(3, 50)
    split = dirichlet(labels, labels, 10, generator(0, "split"), alpha=1e-6)
    sizes = sorted(len(part) for part in split.train)
    assert sizes[:7] == [1] * 7, "three classes can fill at most three clients; the other seven are given one example"
    assert_covers(split.train, 150)


def test_iid_sizes_differ_by_at_most_one() -> None:
    split = partition("iid", labels_of(7, 15), labels_of(7, 3), 4, generator(0, "split"))
    assert {len(part) for part in split.train} == {26, 27}
    assert {len(part) for part in split.test} == {5, 6}


@given(alpha=ALPHAS, seed=st.integers(0, 99), clients=st.integers(2, 6))
@settings(max_examples=40, deadline=None)
def test_quantity_gives_the_same_shares_of_training_and_test(alpha: float, seed: int, clients: int) -> None:
    train, test = labels_of(4, 50), labels_of(4, 30)
    split = partition("quantity", train, test, clients, generator(seed, "split"), alpha=alpha)
    held, tested = ([len(part) for part in parts] for parts in (split.train, split.test))
    shares = dirichlet_shares(1, clients, alpha, generator(seed, "split"))[0]
    repaired = sum(round(200 * share) == 0 for share in shares)
    assert np.abs(np.array(held) / 200 - shares).max() <= (1 + repaired) / 200
    assert np.abs(np.array(tested) / 120 - shares).max() <= 1 / 120


def test_quantity_is_uneven_in_size_and_even_in_labels() -> None:
    labels = labels_of(5, 400)
    split = partition("quantity", labels, labels, 5, generator(1, "split"), alpha=0.5)
    counts = label_counts(split.train, labels, 5)
    sizes = counts.sum(axis=1)
    assert sizes.max() > 4 * sizes.min()
    large = counts[sizes > 200]
    assert np.abs(large / large.sum(axis=1, keepdims=True) - 0.2).max() < 0.1


def test_pathological_pairs_hold_half_each_of_their_own_classes() -> None:
    train, test = labels_of(20, 11), labels_of(20, 6)
    split = pathological(train, test, 20, generator(0, "split"))
    counts, tests = label_counts(split.train, train, 20), label_counts(split.test, test, 20)
    for pair in range(10):
        own = [2 * pair, 2 * pair + 1]
        for client in own:
            assert np.flatnonzero(counts[client]).tolist() == own
            assert set(counts[client, own]) <= {5, 6}
            assert tests[client, own].tolist() == [3, 3]


def test_pathological_groups_are_consecutive_and_even() -> None:
    labels = labels_of(7, 4)
    counts = label_counts(pathological(labels, labels, 6, generator(0, "split")).train, labels, 7)
    assert [np.flatnonzero(row).tolist() for row in counts[::2]] == [[0, 1, 2], [3, 4], [5, 6]]


def test_label_shards_are_pairs_of_runs_of_the_sorted_labels() -> None:
    """12 shards of 10 examples, each within one class of 20: a client holds ten of two classes, or all of one."""
    train, test = labels_of(6, 20), labels_of(6, 4)
    seen = set()
    for seed in range(20):
        split = partition("label-shards", train, test, 6, generator(seed, "split"))
        counts, tests = label_counts(split.train, train, 6), label_counts(split.test, test, 6)
        assert set(counts.ravel()) <= {0, 10, 20} and (counts.sum(axis=1) == 20).all()
        np.testing.assert_array_equal(tests, counts // 5)
        seen |= {int((row > 0).sum()) for row in counts}
    assert seen == {1, 2}


@given(
    labels=st.lists(st.integers(0, 6), min_size=24, max_size=90), num_clients=st.integers(1, 9), seed=st.integers(0, 99)
)
@settings(max_examples=60, deadline=None)
def test_label_shards_are_of_equal_size(labels: list[int], num_clients: int, seed: int) -> None:
    train = np.array(labels)
    split = partition("label-shards", train, np.array([7, 7, 0]), num_clients, generator(seed, "split"))
    sizes = [len(part) for part in split.train]
    least = len(train) // (2 * num_clients)
    assert 2 * least <= min(sizes) <= max(sizes) <= 2 * least + 2
    assert_covers(split.test, 3)  # nobody trains on class 7


def test_natural_clients_are_the_largest_with_ties_by_name() -> None:
    train = ["c", "b", "a", "b", "a", "d", "d", "d"]
    split = natural(train, ["a", "x", "d", "a"], 3)
    assert split.names == ("d", "a", "b")
    assert [part.tolist() for part in split.train] == [[5, 6, 7], [2, 4], [1, 3]]
    assert [part.tolist() for part in split.test] == [[2], [0, 3], []]
    assert natural(train, [], min_examples=2).names == ("d", "a", "b")
    assert natural(train, []).names == ("d", "a", "b", "c")


def test_label_counts_of_nobody() -> None:
    assert label_counts([], np.zeros(0, np.int64), 3).shape == (0, 3)


@pytest.mark.parametrize(
    ("kind", "num_clients", "options", "message"),
    [
        ("dirichlt", 2, {}, "Did you mean 'dirichlet'"),
        ("iid", 0, {}, "num-clients is 0"),
        ("iid", 13, {}, "only 12 training examples"),
        ("iid", None, {}, "num-clients is not set"),
        ("dirichlet", 13, {}, "only 12 training examples"),
        ("dirichlet", 2, {"alpha": 0.0}, "alpha is 0.0"),
        ("dirichlet", 2, {"alpha": float("nan")}, "alpha is nan"),
        ("dirichlet", 2, {"alpha": float("inf")}, "alpha is inf"),
        ("quantity", 2, {"alpha": -1.0}, "alpha is -1.0"),
        ("quantity", 13, {}, "only 12 training examples"),
        ("pathological", 3, {}, "give an even number"),
        ("pathological", 10, {}, "give at most 8"),
        ("label-shards", 7, {}, "two training examples for every client, and there are 12; give at most 6"),
        ("label-shards", 13, {}, "only 12 training examples"),
        ("natural", 2, {}, "--client-column"),
        ("natural", 3, {"clients": (["a", "b"] * 6, [])}, "2 of the 2 clients"),
        ("natural", None, {"clients": (["a", "b"] * 6, []), "min_examples": 7}, "0 of the 2"),
        ("natural", 0, {"clients": (["a", "b"] * 6, [])}, "num-clients is 0"),
        ("natural", None, {"clients": (["a"] * 12, []), "min_examples": 0}, "min-examples is 0"),
    ],
)
def test_arguments_that_do_not_fit(kind: str, num_clients: int | None, options: dict[str, Any], message: str) -> None:
    labels = labels_of(4, 3)
    with pytest.raises(ConfigError, match=message):
        partition(kind, labels, labels, num_clients, generator(0, "split"), **options)


def test_pathological_says_which_client_stays_empty() -> None:
    with pytest.raises(ConfigError, match="Client 1 of 4 would get no training example"):
        pathological(np.array([0, 1, 1, 1]), np.array([0, 1]), 4, generator(0, "split"))


def test_the_kinds_are_the_documented_ones() -> None:
    page = (Path(__file__).parents[2] / "README.md").read_text()
    assert all(f"`{kind}`" in page for kind in KINDS if kind != "natural")


# ../shared/paper.md, "Data": training examples max / min of a client, classes max / min of a client. None: see below.
PUBLISHED = [
    ("banking77", 0.01, (639, 50, 15, 2)),
    ("banking77", 0.1, (672, 139, 34, 18)),
    ("banking77", 0.5, (473, 248, 65, None)),
    ("20newsgroups", 0.01, (1317, 1, 5, 1)),
    ("20newsgroups", 0.1, (911, 58, 12, 5)),
    ("20newsgroups", 0.5, (576, 151, 20, None)),
]
# The paper's fewest classes at alpha 0.5, 37 and 20, lie outside what this split can give (about 44..53 and 12..16):
# with shares ~ Dir(0.5) over 30 clients, one in six falls below one example of 600, so that no client population has
# all 20 groups everywhere. The paper does not say how it drew or counted.


def real_labels(shared: Path, name: str) -> IntArray:
    if name == "banking77":
        with (shared / "data" / name / "train.csv").open(newline="", encoding="utf-8") as rows:
            labels = [row["category"] for row in csv.DictReader(rows)]
    else:
        with gzip.open(shared / "data" / name / "train.jsonl.gz", "rt", encoding="utf-8") as lines:
            labels = [json.loads(line)["label"] for line in lines]
    return np.unique(labels, return_inverse=True)[1].reshape(-1).astype(np.int64)


@pytest.mark.parametrize(("name", "alpha", "published"), PUBLISHED)
def test_published_statistics_lie_within_the_sampling_spread(
    shared: Path, name: str, alpha: float, published: tuple[int | None, ...]
) -> None:
    labels = real_labels(shared, name)
    no_test = np.zeros(0, np.int64)
    seen = []
    for seed in range(30):
        split = dirichlet(labels, no_test, 30, generator(seed, "published"), alpha=alpha)
        counts = label_counts(split.train, labels, int(labels.max()) + 1)
        sizes, classes = counts.sum(axis=1), (counts > 0).sum(axis=1)
        seen.append((sizes.max(), sizes.min(), classes.max(), classes.min()))
    low, high = np.min(seen, axis=0), np.max(seen, axis=0)
    for value, least, most in zip(published, low, high, strict=True):
        assert value is None or least <= value <= most, (published, low.tolist(), high.tolist())
