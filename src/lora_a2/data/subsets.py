"""Seeded, stratified choices of rows: a held-out test set, and a smaller training set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self, TypeVar

import numpy as np

from lora_a2.core.randomness import generator
from lora_a2.data.options import ReadingOptions
from lora_a2.data.partition import IntArray
from lora_a2.errors import ConfigError, DataError


class Rows(Protocol):
    """Examples of either task."""

    @property
    def labels(self) -> IntArray:
        """(n,) integers."""

    @property
    def clients(self) -> Sequence[str] | None:
        """n client names, or None."""

    def __len__(self) -> int: ...

    def take(self, rows: IntArray) -> Self:
        """The examples at `rows` (m,), in that order."""


Part = TypeVar("Part", bound=Rows)


def divided(train: Part, test: Part | None, options: ReadingOptions) -> tuple[Part, Part]:
    """Training and test set as the options want them: held out where there is no test set, validation in its place, smaller.

    Raises:
        DataError: nothing is left to test with.
        ConfigError: fewer examples are wanted than there are classes.
    """
    if test is None:
        train, test = _parted(train, options.test_fraction or options.hold_out, options.seed)
    if options.validation_fraction is not None:
        train, test = _parted(train, options.validation_fraction, options.seed)
    if options.max_examples is not None:
        rng = generator(options.seed, "max-examples")
        train = train.take(at_most(train.labels, options.max_examples, rng))
    if options.max_test_examples is not None:
        rng = generator(options.seed, "max-test-examples")
        test = test.take(at_most(test.labels, options.max_test_examples, rng, "max-test-examples"))
    return train, test


def _parted(rows: Part, fraction: float, seed: int) -> tuple[Part, Part]:
    train, test = hold_out(rows.labels, rows.clients, fraction, generator(seed, "hold-out"))
    if not len(test):
        raise DataError(
            f"Holding out {fraction:g} of {len(rows)} examples leaves none for testing, as each class keeps one "
            "for training; give more data, or a test set with --test-data."
        )
    return rows.take(train), rows.take(test)


def hold_out(
    labels: IntArray, clients: Sequence[str] | None, fraction: float, rng: np.random.Generator
) -> tuple[IntArray, IntArray]:
    """Rows for training and for testing, `fraction` (0..1) of them for testing; each sorted.

    Every label, and every client and each of its labels where there are clients, gives its share to within one
    example. Clients come first: with them a label's share over all is met on average only. The last example of a
    class always stays in training.

    Args:
        labels: (n,) integers.
        clients: n client names, or None.
    """
    owners = np.zeros(len(labels), np.int64)
    if clients is not None:
        owners = np.unique(np.asarray(clients), return_inverse=True)[1].reshape(-1).astype(np.int64)
    order = np.lexsort((rng.permutation(len(labels)), labels, owners))
    # Systematic sampling: any stretch of m neighbours in this order holds m · fraction test rows, to within one.
    marks = np.floor(np.arange(len(labels) + 1) * fraction + rng.random())
    testing = np.zeros(len(labels), np.bool_)
    testing[order] = np.diff(marks) > 0
    for label in np.setdiff1d(labels[testing], labels[~testing]):
        testing[rng.choice(np.flatnonzero(labels == label))] = False
    return np.flatnonzero(~testing), np.flatnonzero(testing)


def at_most(labels: IntArray, max_examples: int, rng: np.random.Generator, option: str = "max-examples") -> IntArray:
    """Sorted rows of a subset of at most `max_examples`, with as equal a number from each class as there is.

    Args:
        labels: (n,) integers.
        option: what `max_examples` is called in an error.

    Raises:
        ConfigError: fewer examples than classes.
    """
    present, sizes = np.unique(labels, return_counts=True)
    if max_examples < len(present):
        raise ConfigError(
            f"{option} is {max_examples}, but the data has {len(present)} classes and each needs an example; "
            f"give at least {len(present)}."
        )
    quotas = _level(sizes, max_examples, rng)
    rows = [
        rng.permutation(np.flatnonzero(labels == label))[:quota] for label, quota in zip(present, quotas, strict=True)
    ]
    return np.sort(np.concatenate(rows)).astype(np.int64)


def _level(sizes: IntArray, total: int, rng: np.random.Generator) -> IntArray:
    """(C,) min(size, level) for the highest level that fits in `total`; random classes take the few left over."""
    low, high = 0, int(sizes.max())
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(sizes, middle).sum() <= total else (low, middle - 1)
    quotas = np.minimum(sizes, low).astype(np.int64)
    roomy = np.flatnonzero(sizes > low)
    left = min(total - int(quotas.sum()), len(roomy))
    quotas[rng.permutation(roomy)[:left]] += 1
    return quotas
