"""The embedded instruction set can be learnt, cannot be guessed, and is clean."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest

from lora_a2.data.finding import find_tables

FIELDS = ("prompt", "completion", "department")
DEPARTMENTS = {
    "delivery": (50, 15),
    "returns": (50, 15),
    "repairs": (40, 12),
    "payments": (30, 9),
    "shops": (30, 9),
}
"""Training and test examples."""
TOLD, ASKED = 10, 3
"""How often a fact is said in the training set, and asked for in the test set."""
Row = dict[str, Any]


@pytest.fixture(scope="module")
def splits() -> tuple[list[Row], list[Row]]:
    found = find_tables("shopdesk")
    assert found.test is not None and found.name == "shopdesk" and not found.spare
    assert found.train.names == FIELDS and found.test.names == (*FIELDS, "key")
    train, test = (
        [dict(zip(table.names, values, strict=True)) for values in zip(*map(table.column, table.names), strict=True)]
        for table in (found.train, found.test)
    )
    return train, test


def squeezed(text: str) -> str:
    """As keys are compared: without case and blanks."""
    return "".join(text.split()).casefold()


def test_sizes(splits: tuple[list[Row], list[Row]]) -> None:
    train, test = (Counter(row["department"] for row in rows) for rows in splits)
    assert {name: (train[name], test[name]) for name in train | test} == DEPARTMENTS
    assert (train.total(), test.total()) == (200, 60)


def test_every_text_is_clean_and_there_is_no_other_like_it(splits: tuple[list[Row], list[Row]]) -> None:
    rows = splits[0] + splits[1]
    for field in ("prompt", "completion"):
        texts = [row[field] for row in rows]
        assert len({squeezed(text) for text in texts}) == len(rows)
        for text in texts:
            assert text == " ".join(text.split()) and text.isascii(), text
            assert text[0].isupper() and text[-1] in ".?", text


def test_each_key_is_learnt_in_its_own_department_and_only_there(splits: tuple[list[Row], list[Row]]) -> None:
    train, test = splits
    assert set(Counter(squeezed(row["key"]) for row in test).values()) == {ASKED}
    for row in test:
        key = squeezed(row["key"])
        told = [other["department"] for other in train if key in squeezed(other["completion"])]
        assert len(told) == TOLD and set(told) == {row["department"]}, row
        assert key in squeezed(row["completion"]) and key not in squeezed(row["prompt"]), row


def test_every_training_answer_teaches_a_key(splits: tuple[list[Row], list[Row]]) -> None:
    train, test = splits
    keys = {name: [squeezed(row["key"]) for row in test if row["department"] == name] for name in DEPARTMENTS}
    idle = [r for r in train if not any(k in squeezed(r["prompt"] + r["completion"]) for k in keys[r["department"]])]
    assert not idle


def test_a_key_is_no_part_of_a_longer_number_or_word(splits: tuple[list[Row], list[Row]]) -> None:
    train, test = splits
    for key in (row["key"] for row in test):
        text = "\n".join(row["completion"] for row in train + test)
        assert len(re.findall(re.escape(key), text)) == len(re.findall(rf"(?<![\w.]){re.escape(key)}(?!\w)", text)), key


def test_no_test_question_is_a_training_question_with_other_blanks_or_in_another_order(
    splits: tuple[list[Row], list[Row]],
) -> None:
    """Word by word, even the nearest training question shares less than two thirds of a test question's words."""
    train, test = ([frozenset(re.findall(r"\w+", row["prompt"].casefold())) for row in rows] for rows in splits)
    for words in test:
        nearest = max(train, key=lambda other: len(words & other) / len(words | other))
        assert len(words & nearest) / len(words | nearest) < 2 / 3, (words, nearest)


def test_examples_are_short(splits: tuple[list[Row], list[Row]]) -> None:
    """Digits, words and signs, of which tokenizers make little more than as many tokens."""
    for row in splits[0] + splits[1]:
        assert len(re.findall(r"\d|[^\W\d]+|[^\w\s]", f"{row['prompt']} {row['completion']}")) <= 40, row
