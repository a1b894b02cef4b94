"""Who holds which examples: the splits of a labelled data set over clients. NumPy only.

Every kind gives each example to at most one client, and splits training and test set alike. Shapes: n examples,
K clients, C classes; labels are (n,) integers in 0..C-1.
"""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lora_a2.data.shares import FloatArray64, dirichlet_shares
from lora_a2.errors import ConfigError

IntArray = npt.NDArray[np.int64]

DRAWS = 100  # Dirichlet draws before the best one is repaired


@dataclass(frozen=True)
class Partition:
    """Example indices by client.

    Attributes:
        train: K sorted index arrays (n_k,) into the training set, none of them empty.
        test: K sorted index arrays into the test set; a client may have no test example.
        names: K client names, "client-0" … or, for natural clients, the data's own.
    """

    train: tuple[IntArray, ...]
    test: tuple[IntArray, ...]
    names: tuple[str, ...]


def iid(train_labels: IntArray, test_labels: IntArray, num_clients: int, rng: np.random.Generator) -> Partition:
    """Equal shares at random, whatever the labels: client sizes differ by at most one.

    Raises:
        ConfigError: num_clients is below 1 or above the number of training examples.
    """
    _check_num_clients(num_clients, len(train_labels))

    def deal(labels: IntArray) -> list[IntArray]:
        return [np.asarray(part) for part in np.array_split(rng.permutation(len(labels)), num_clients)]

    return _numbered(deal(train_labels), deal(test_labels))


def dirichlet(
    train_labels: IntArray, test_labels: IntArray, num_clients: int, rng: np.random.Generator, *, alpha: float
) -> Partition:
    """Every class is cut over the clients by shares ~ Dir(alpha · 1_K), the same shares for training and test.

    A class of n_c examples is shuffled and cut at n_c · cumulative share, rounded to the nearest example. Shares are
    drawn again, up to `DRAWS` times, until every client has a training example. Where no draw does (small alpha, few
    classes), the draw with the fewest empty clients is repaired: each of these is given one training example of the
    client that holds most at that moment. Such a client often has no test example.

    Raises:
        ConfigError: alpha is not a positive number, or num_clients does not fit the training set.
    """
    _check_alpha(alpha)
    _check_num_clients(num_clients, len(train_labels))
    num_classes = _num_classes(train_labels, test_labels)
    sizes = np.bincount(train_labels, minlength=num_classes)
    best, fewest = np.empty((0, num_clients)), num_clients + 1
    for _ in range(DRAWS):
        shares = dirichlet_shares(num_classes, num_clients, alpha, rng)
        held = np.diff(_ends(shares, sizes), axis=1, prepend=0).sum(axis=0)
        empty = int((held == 0).sum())
        if empty < fewest:
            best, fewest = shares, empty
        if empty == 0:
            break
    train = _cut(train_labels, best, rng)
    _fill_empty(train, rng)
    return _numbered(train, _cut(test_labels, best, rng))


def quantity(
    train_labels: IntArray, test_labels: IntArray, num_clients: int, rng: np.random.Generator, *, alpha: float
) -> Partition:
    """Sizes ~ n · Dir(alpha · 1_K), whatever the labels; the same shares for training and test. No client stays empty.

    Quantity skew of Li, Diao, Chen, He: "Federated Learning on Non-IID Data Silos: An Experimental Study", ICDE 2022.

    Raises:
        ConfigError: alpha is not a positive number, or num_clients does not fit the training set.
    """
    _check_alpha(alpha)
    _check_num_clients(num_clients, len(train_labels))
    shares = dirichlet_shares(1, num_clients, alpha, rng)
    parts = [_cut(np.zeros(len(labels), np.int64), shares, rng) for labels in (train_labels, test_labels)]
    _fill_empty(parts[0], rng)
    return _numbered(*parts)


def pathological(
    train_labels: IntArray, test_labels: IntArray, num_clients: int, rng: np.random.Generator
) -> Partition:
    """Clients 2k and 2k+1 (from 0) hold one half each of the k-th group of classes, and nothing else.

    The classes are cut in consecutive order into K/2 groups, as even as possible; each class is halved at random, an
    odd example goes to client 2k. With 20 clients on 20 classes, two a pair, this is the split of the LoRA-A² paper.

    Raises:
        ConfigError: num_clients is odd, there are fewer classes than pairs of clients, or a client stays empty.
    """
    _check_num_clients(num_clients, len(train_labels))
    if num_clients % 2:
        raise ConfigError(
            f"num-clients is {num_clients}: the pathological split makes pairs of clients; give an even number."
        )
    num_classes = _num_classes(train_labels, test_labels)
    if num_classes < num_clients // 2:
        raise ConfigError(
            f"num-clients is {num_clients}: the pathological split needs a class for every pair of clients, and "
            f"there are {num_classes} classes; give at most {2 * num_classes}."
        )
    shares = np.zeros((num_classes, num_clients))
    for pair, group in enumerate(np.array_split(np.arange(num_classes), num_clients // 2)):
        shares[group, 2 * pair : 2 * pair + 2] = 0.5
    return _numbered(_cut(train_labels, shares, rng), _cut(test_labels, shares, rng))


def label_shards(
    train_labels: IntArray, test_labels: IntArray, num_clients: int, rng: np.random.Generator
) -> Partition:
    """Training examples in the order of their labels, cut into 2K shards of equal size; each client gets two at random.

    The pathological non-IID split of McMahan, Moore, Ramage, Hampson, y Arcas: "Communication-Efficient Learning of Deep
    Networks from Decentralized Data", AISTATS 2017. Shard sizes differ by at most one. Test examples follow the clients'
    shares of the training examples of their class, our choice; a class without training examples is spread evenly.

    Raises:
        ConfigError: num_clients is below 1, or above half of the number of training examples.
    """
    _check_num_clients(num_clients, len(train_labels))
    if 2 * num_clients > len(train_labels):
        raise ConfigError(
            f"num-clients is {num_clients}: label shards need two training examples for every client, and there are "
            f"{len(train_labels)}; give at most {len(train_labels) // 2}."
        )
    num_classes = _num_classes(train_labels, test_labels)
    held = np.zeros((num_classes, num_clients))
    owners = rng.permutation(np.repeat(np.arange(num_clients), 2))
    for owner, shard in zip(owners, np.array_split(np.sort(train_labels), 2 * num_clients), strict=True):
        held[:, owner] += np.bincount(shard, minlength=num_classes)
    held[held.sum(axis=1) == 0] = 1
    shares = held / held.sum(axis=1, keepdims=True)
    return _numbered(_cut(train_labels, shares, rng), _cut(test_labels, shares, rng))


def natural(
    train_clients: Sequence[str],
    test_clients: Sequence[str],
    num_clients: int | None = None,
    *,
    min_examples: int = 1,
) -> Partition:
    """One client for every name in `train_clients` that has at least `min_examples` training examples.

    Clients are ordered by their number of training examples, largest first, equal ones by name; `num_clients` keeps
    the first of them, None all. Test examples go to the client of the same name; those of other names are left out.

    Raises:
        ConfigError: a number is below 1, or fewer clients exist than asked for.
    """
    if min_examples < 1:
        raise ConfigError(f"min-examples is {min_examples}: it must be at least 1.")
    sizes = Counter(train_clients)
    names = sorted((name for name, size in sizes.items() if size >= min_examples), key=lambda n: (-sizes[n], n))
    if num_clients is not None:
        _check_num_clients(num_clients, len(train_clients))
    if len(names) < (num_clients or 1):
        raise ConfigError(
            f"num-clients is {num_clients or 'not set'}: {len(names)} of the {len(sizes)} clients in the data have "
            f"at least {min_examples} training examples; lower num-clients or min-examples."
        )
    names = names[:num_clients]
    return Partition(train=_rows_of(names, train_clients), test=_rows_of(names, test_clients), names=tuple(names))


@dataclass(frozen=True)
class _Request:
    """The arguments of `partition`, for the rows of `KINDS`."""

    train_labels: IntArray
    test_labels: IntArray
    num_clients: int | None
    rng: np.random.Generator
    alpha: float
    train_clients: Sequence[str] | None
    test_clients: Sequence[str] | None
    min_examples: int

    def count(self) -> int:
        if self.num_clients is None:
            raise ConfigError("num-clients is not set: every split but the natural one needs it.")
        return self.num_clients

    def by_client(self) -> tuple[Sequence[str], Sequence[str]]:
        if self.train_clients is None or self.test_clients is None:
            raise ConfigError(
                "The natural split needs to know whose example each is, and the data has no client column; "
                "name one with --client-column, or choose another split."
            )
        return self.train_clients, self.test_clients


KINDS: Mapping[str, Callable[[_Request], Partition]] = {
    "iid": lambda q: iid(q.train_labels, q.test_labels, q.count(), q.rng),
    "dirichlet": lambda q: dirichlet(q.train_labels, q.test_labels, q.count(), q.rng, alpha=q.alpha),
    "quantity": lambda q: quantity(q.train_labels, q.test_labels, q.count(), q.rng, alpha=q.alpha),
    "pathological": lambda q: pathological(q.train_labels, q.test_labels, q.count(), q.rng),
    "label-shards": lambda q: label_shards(q.train_labels, q.test_labels, q.count(), q.rng),
    "natural": lambda q: natural(*q.by_client(), q.num_clients, min_examples=q.min_examples),
}
"""Name of a split, as typed on the command line → its function."""
BY_LABEL = ("dirichlet", "pathological", "label-shards")
"""Those that need labels."""


def partition(
    kind: str,
    train_labels: IntArray,
    test_labels: IntArray,
    num_clients: int | None,
    rng: np.random.Generator,
    *,
    alpha: float = 0.5,
    clients: tuple[Sequence[str] | None, Sequence[str] | None] = (None, None),
    min_examples: int = 1,
) -> Partition:
    """The split `kind` of `KINDS`; the same arguments and generator state give the same split.

    Args:
        train_labels, test_labels: (n,) integers, 0..C-1.
        num_clients: K; None only for the natural split, where it stands for all clients.
        alpha: concentration of the Dirichlet and the quantity split.
        clients: of the training and of the test set, n client names each, for the natural split.
        min_examples: fewer training examples leave a natural client out.

    Raises:
        ConfigError: an unknown kind, or arguments that do not fit it or the data.
    """
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise ConfigError(f"Unknown split '{kind}': choose one of {', '.join(KINDS)}.{hint}")
    return KINDS[kind](_Request(train_labels, test_labels, num_clients, rng, alpha, *clients, min_examples))


def label_counts(partition_indices: Sequence[IntArray], labels: IntArray, num_classes: int) -> IntArray:
    """(K, C) number of examples of each class at each client."""
    rows = [np.bincount(labels[indices], minlength=num_classes) for indices in partition_indices]
    return np.asarray(rows, np.int64).reshape(len(rows), num_classes)


def _check_alpha(alpha: float) -> None:
    if not (math.isfinite(alpha) and alpha > 0):
        raise ConfigError(f"alpha is {alpha}: a Dirichlet distribution needs a number above 0, such as 0.5.")


def _check_num_clients(num_clients: int, num_examples: int) -> None:
    if num_clients < 1:
        raise ConfigError(f"num-clients is {num_clients}: it must be at least 1.")
    if num_clients > num_examples:
        raise ConfigError(
            f"num-clients is {num_clients}, but there are only {num_examples} training examples; every client needs "
            "one: lower num-clients or use more data."
        )


def _num_classes(train_labels: IntArray, test_labels: IntArray) -> int:
    return 1 + max(int(labels.max(initial=0)) for labels in (train_labels, test_labels))


def _ends(shares: FloatArray64, sizes: IntArray) -> IntArray:
    """(C, K) where each client's part of a class ends.

    Rounded, not floored: floors hand the last client one example of nearly every class (77 of BANKING77's classes
    at alpha 0.1, where the paper's richest client has 34). The last end is the class size, whatever the rounding.
    """
    cumulative = np.cumsum(shares, axis=1)
    ends = np.minimum(np.floor(cumulative * sizes[:, None] + 0.5).astype(np.int64), sizes[:, None])
    ends[:, -1] = sizes
    return np.asarray(ends, np.int64)


def _cut(labels: IntArray, shares: FloatArray64, rng: np.random.Generator) -> list[IntArray]:
    """K index arrays: every class shuffled, then cut by its row of `shares` (C, K)."""
    num_classes, num_clients = shares.shape
    ends = _ends(shares, np.bincount(labels, minlength=num_classes))
    parts: list[list[IntArray]] = [[] for _ in range(num_clients)]
    for label in range(num_classes):
        members = rng.permutation(np.flatnonzero(labels == label))
        for client, part in enumerate(np.split(members, ends[label, :-1])):
            parts[client].append(part)
    return [np.concatenate(part) for part in parts]


def _fill_empty(train: list[IntArray], rng: np.random.Generator) -> None:
    for client, indices in enumerate(train):
        if len(indices) == 0:
            largest = max(range(len(train)), key=lambda k: len(train[k]))
            given = int(rng.integers(len(train[largest])))
            train[client] = train[largest][given : given + 1]
            train[largest] = np.delete(train[largest], given)


def _rows_of(names: Sequence[str], clients: Sequence[str]) -> tuple[IntArray, ...]:
    rows: dict[str, list[int]] = {name: [] for name in names}
    for index, name in enumerate(clients):
        if name in rows:
            rows[name].append(index)
    return tuple(np.asarray(rows[name], np.int64) for name in names)


def _numbered(train: Sequence[IntArray], test: Sequence[IntArray]) -> Partition:
    empty = [k for k, indices in enumerate(train) if len(indices) == 0]
    if empty:
        raise ConfigError(
            f"Client {empty[0]} of {len(train)} would get no training example: its classes have too few examples; "
            "lower num-clients or use more data."
        )
    return Partition(
        train=tuple(np.sort(indices).astype(np.int64) for indices in train),
        test=tuple(np.sort(indices).astype(np.int64) for indices in test),
        names=tuple(f"client-{k}" for k in range(len(train))),
    )
