"""A data set's split over clients, and what it looks like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lora_a2.core.randomness import generator
from lora_a2.data.partition import IntArray, Partition, label_counts, partition
from lora_a2.data.written import DataSet


def split_data(
    data: DataSet, *, partitioner: str, num_clients: int | None, alpha: float, min_client_examples: int, seed: int
) -> Partition:
    """The seeded split of a data set over clients, train and test alike.

    Raises:
        ConfigError: a split that the data do not allow.
    """
    return partition(
        partitioner,
        data.train.labels,
        data.test.labels,
        num_clients,
        generator(seed, "partition"),
        alpha=alpha,
        clients=(data.train.clients, data.test.clients),
        min_examples=min_client_examples,
    )


ALL = "all"
"""The one class of data that have none."""


@dataclass(frozen=True)
class SplitTable:
    """Who holds how much: K clients, C classes.

    Attributes:
        names: K client names.
        train, test: (K, C) examples of each class at each client.
        label_names: C names.
    """

    names: tuple[str, ...]
    train: IntArray
    test: IntArray
    label_names: tuple[str, ...]

    def rows(self) -> list[dict[str, Any]]:
        """For each client: its examples, its classes, and its most frequent class with that one's share."""
        sizes, classes, top = self.train.sum(axis=1), (self.train > 0).sum(axis=1), self.train.argmax(axis=1)
        return [
            {
                "client": name,
                "train_examples": int(sizes[k]),
                "train_classes": int(classes[k]),
                "test_examples": int(self.test[k].sum()),
                "test_classes": int((self.test[k] > 0).sum()),
                "top_class": self.label_names[top[k]],
                "top_share": float(self.train[k, top[k]] / sizes[k]),
            }
            for k, name in enumerate(self.names)
        ]

    def statistics(self) -> dict[str, int | None]:
        """The figures by which the LoRA-A² paper describes its splits: most and fewest examples and classes of a client.

        Also: clients without a test example, and examples that no client has (those of left-out natural clients are not
        counted).
        """
        sizes, classes = self.train.sum(axis=1), (self.train > 0).sum(axis=1)
        return {
            "num_clients": len(self.names),
            "train_examples": int(sizes.sum()),
            "test_examples": int(self.test.sum()),
            "max_train_examples": int(sizes.max()),
            "min_train_examples": int(sizes.min()),
            "max_train_classes": int(classes.max()),
            "min_train_classes": int(classes.min()),
            "clients_without_test": int((self.test.sum(axis=1) == 0).sum()),
        }


def split_table(data: DataSet, split: Partition) -> SplitTable:
    """What a split gives each client."""

    def counts(parts: Sequence[IntArray], labels: IntArray) -> IntArray:
        return np.asarray(label_counts(parts, labels, len(data.label_names) or 1), np.int64)

    names = data.label_names or (ALL,)
    return SplitTable(split.names, counts(split.train, data.train.labels), counts(split.test, data.test.labels), names)
