"""Accuracy of a model on its clients' test shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lora_a2.core.types import Adapter, BaseDelta, FloatArray
from lora_a2.data.partition import IntArray
from lora_a2.engine.classifier import Classifier
from lora_a2.engine.pool import Pool

_CHUNK = 256
"""Sentences of one piece of work; fixed, so that results do not depend on the number of workers."""


@dataclass(frozen=True)
class Evaluation:
    """Accuracies are fractions of 1. The client figures are None if nobody has a test example of their own.

    Attributes:
        accuracy: of all examples together.
        macro_f1: mean over the classes that occur, among labels or predictions, of their F1.
        client_mean, client_std: mean and population standard deviation of the clients' accuracies.
        client_worst_tenth: mean accuracy of the worst tenth of the clients, at least one.
        per_client: client name → accuracy, of those with test examples.
    """

    accuracy: float
    macro_f1: float
    num_examples: int
    client_mean: float | None
    client_worst_tenth: float | None
    client_std: float | None
    per_client: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for `json.dumps`."""
        return asdict(self)


def predict(pool: Pool, adapter: Adapter | None, base: BaseDelta, sentences: Sequence[np.ndarray]) -> FloatArray:
    """Logits (n, C) float32, for n tokenised sentences in their order, of the adapter on base weights moved by `base`."""
    order = np.argsort([len(s) for s in sentences], kind="stable")
    chunks = [order[i : i + _CHUNK] for i in range(0, len(order), _CHUNK)]

    def work(classifier: Classifier, rows: IntArray) -> FloatArray:
        classifier.set_base(base)
        return classifier.predict(adapter, [sentences[i] for i in rows])

    logits = np.concatenate(list(pool.map(work, chunks)))
    result = np.empty_like(logits)
    result[order] = logits
    return result


def evaluate(predicted: IntArray, labels: IntArray, clients: dict[str, IntArray] | None = None) -> Evaluation:
    """Compares predictions (n,) with labels (n,); `clients` maps a name to its rows among the n."""
    right = predicted == labels
    per_client = {name: float(right[rows].mean()) for name, rows in (clients or {}).items() if len(rows)}
    return Evaluation(
        accuracy=float(right.mean()),
        macro_f1=macro_f1(predicted, labels),
        num_examples=len(labels),
        **client_figures(per_client),
    )


def client_figures(per_client: dict[str, float]) -> dict[str, Any]:
    """The figures of an `Evaluation` that follow from the clients' accuracies."""
    values = np.sort(np.array(list(per_client.values())))
    tenth = max(1, round(len(values) / 10))
    return {
        "client_mean": float(values.mean()) if len(values) else None,
        "client_worst_tenth": float(values[:tenth].mean()) if len(values) else None,
        "client_std": float(values.std()) if len(values) else None,
        "per_client": per_client,
    }


def macro_f1(predicted: IntArray, labels: IntArray) -> float:
    """Mean over the classes that occur of F1 = 2·TP / (2·TP + FP + FN)."""
    size = int(max(predicted.max(), labels.max())) + 1
    hits = np.bincount(labels[predicted == labels], minlength=size)
    total = np.bincount(predicted, minlength=size) + np.bincount(labels, minlength=size)
    occurs = total > 0
    return float((2 * hits[occurs] / total[occurs]).mean())
