"""How a classifier does class by class. Shapes: n examples, C classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lora_a2.core.types import FloatArray
from lora_a2.data.partition import IntArray
from lora_a2.engine.work import Labels


def confusion(logits: FloatArray, labels: Labels) -> IntArray:
    """(C, C) int64: the examples of each class (row) by the class that they were taken for (column)."""
    given, classes = np.asarray(labels, np.int64), logits.shape[1]
    predicted = logits.argmax(1)
    return np.bincount(given * classes + predicted, minlength=classes**2).reshape(classes, classes)


def class_tables(
    logits: FloatArray, labels: Labels, label_names: Sequence[str]
) -> Mapping[str, Sequence[Mapping[str, Any]]]:
    """The classes, those with the least F1 first, and the pairs that were confused, the most frequent first.

    A precision is None where the class was never predicted, a recall where it has no example, and F1 where both are so.
    """
    counts = confusion(logits, labels)
    return {"classes": _classes(counts, label_names), "confusions": _confusions(counts, label_names)}


def _classes(counts: IntArray, label_names: Sequence[str]) -> list[dict[str, Any]]:
    hits, given, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    rows = [
        {
            "label": name,
            "num_examples": int(given[k]),
            "precision": _ratio(hits[k], predicted[k]),
            "recall": _ratio(hits[k], given[k]),
            "f1": _ratio(2 * hits[k], predicted[k] + given[k]),
        }
        for k, name in enumerate(label_names)
    ]
    return sorted(rows, key=lambda row: (row["f1"] is None, row["f1"]))


def _confusions(counts: IntArray, label_names: Sequence[str]) -> list[dict[str, Any]]:
    rows, columns = np.nonzero(counts - np.diag(counts.diagonal()))
    found = [
        {
            "label": label_names[i],
            "predicted": label_names[j],
            "num_examples": int(counts[i, j]),
            "share_of_label": _ratio(counts[i, j], counts[i].sum()),
        }
        for i, j in zip(rows.tolist(), columns.tolist(), strict=True)
    ]
    return sorted(found, key=lambda row: -row["num_examples"])


def _ratio(part: np.int64, whole: np.int64) -> float | None:
    return float(part / whole) if whole else None
