"""A classifier class by class, against scikit-learn's figures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.dummy import DummyClassifier
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from lora_a2.tasks.base import evaluate, summed, with_tables
from lora_a2.tasks.classification import TASK
from lora_a2.tasks.classification.classes import class_tables, confusion


@st.composite
def predictions(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Logits (n, C), labels (n,) and names; some classes without an example, some never predicted."""
    classes, count = draw(st.integers(2, 6)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    logits = rng.standard_normal((count, classes)).astype(np.float32)
    logits[:, rng.integers(classes)] -= draw(st.sampled_from([0.0, 9.0]))
    return logits, rng.integers(0, draw(st.integers(1, classes)), count), tuple(f"class {k}" for k in range(classes))


@given(case=predictions())
def test_the_classes_are_those_of_scikit_learn(case: tuple[np.ndarray, np.ndarray, tuple[str, ...]]) -> None:
    logits, labels, names = case
    predicted, every = logits.argmax(1), list(range(len(names)))
    matrix = confusion_matrix(labels, predicted, labels=every)
    np.testing.assert_array_equal(confusion(logits, labels), matrix)
    tables = class_tables(logits, labels, names)
    rows = {row["label"]: row for row in tables["classes"]}
    assert set(rows) == set(names)
    figures = precision_recall_fscore_support(labels, predicted, labels=every, zero_division=np.nan)
    for k, (precision, recall, _, given_) in enumerate(zip(*figures, strict=True)):
        row = rows[names[k]]
        assert row["num_examples"] == given_ == matrix[k].sum()
        assert (row["precision"] is None) == (matrix[:, k].sum() == 0)
        assert (row["recall"] is None) == (given_ == 0)
        np.testing.assert_allclose(np.array(row["precision"], float), precision)
        np.testing.assert_allclose(np.array(row["recall"], float), recall)
    known = [row["f1"] for row in tables["classes"] if row["f1"] is not None]
    assert known == sorted(known)
    assert [row["f1"] is None for row in tables["classes"]] == sorted(row["f1"] is None for row in tables["classes"])
    assert np.mean(known) == pytest.approx(TASK.metrics(TASK.statistics(logits, labels))["macro_f1"])


@given(case=predictions())
def test_every_wrong_example_is_in_one_pair(case: tuple[np.ndarray, np.ndarray, tuple[str, ...]]) -> None:
    logits, labels, names = case
    pairs = class_tables(logits, labels, names)["confusions"]
    sizes = [row["num_examples"] for row in pairs]
    assert sizes == sorted(sizes, reverse=True) and sum(sizes) == (logits.argmax(1) != labels).sum()
    for row in pairs:
        of_label = labels == names.index(row["label"])
        taken = logits.argmax(1) == names.index(row["predicted"])
        assert row["num_examples"] == (of_label & taken).sum() > 0
        assert row["label"] != row["predicted"]
        assert row["share_of_label"] == row["num_examples"] / of_label.sum()


@given(case=predictions())
def test_the_largest_class_is_that_of_all_clients_together(
    case: tuple[np.ndarray, np.ndarray, tuple[str, ...]],
) -> None:
    logits, labels, _ = case
    parts = {"a": slice(0, len(labels) // 2), "b": slice(len(labels) // 2, None)}
    clients = {name: TASK.statistics(logits[rows], labels[rows]) for name, rows in parts.items() if len(labels[rows])}
    found = evaluate(TASK, summed(clients.values()), clients)
    dummy = DummyClassifier(strategy="most_frequent").fit(labels[:, None], labels)
    assert found.to_json()["majority_accuracy"] == pytest.approx(dummy.score(labels[:, None], labels))


def test_what_nodes_send_says_nothing_of_classes() -> None:
    shared = {name: np.array(3) for name in TASK.shared}
    found = evaluate(TASK, shared, {})
    assert "majority_accuracy" not in found.to_json() and found.tables == {}
    assert TASK.lines(found.to_json()) == []


def test_the_worst_client_is_first() -> None:
    def counts(examples: int, right: int) -> dict[str, Any]:
        return {"num_examples": np.array(examples), "num_correct": np.array(right)}

    clients = {"a": counts(4, 3), "b": counts(2, 0), "c": counts(0, 0), "d": counts(5, 5)}
    found = with_tables(TASK, evaluate(TASK, counts(11, 8), clients), clients, {"own": []})
    assert found.to_json()["clients"] == [
        {"client": "b", "num_examples": 2, "accuracy": 0.0},
        {"client": "a", "num_examples": 4, "accuracy": 0.75},
        {"client": "d", "num_examples": 5, "accuracy": 1.0},
    ]
    assert found.to_json()["own"] == []
