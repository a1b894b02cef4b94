"""Metrics of texts: the sums of clients' statistics give what the libraries say of all texts together."""

from __future__ import annotations

import json
from functools import reduce
from itertools import zip_longest
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_a2.errors import ConfigError, DataError
from lora_a2.tasks.causal_lm.scores import METRICS, STATISTICS, text_metrics, text_statistics

WORDS = st.sampled_from(["the", "a", "cat", "dog", "Sat,", "on", "mat.", "ünï", "犬", "don't", "\n", "."])
TEXTS = st.lists(WORDS, max_size=9).map(" ".join)
EXAMPLES = st.tuples(TEXTS, st.lists(TEXTS, min_size=1, max_size=3), st.integers(0, 2))

Statistics = dict[str, np.ndarray]


def added(a: Statistics, b: Statistics) -> Statistics:
    return {name: a[name] + b[name] for name in a}


def longest_common(a: list[str], b: list[str]) -> int:
    """Straight from the definition, by recursion."""
    if not a or not b:
        return 0
    if a[-1] == b[-1]:
        return longest_common(a[:-1], b[:-1]) + 1
    return max(longest_common(a[:-1], b), longest_common(a, b[:-1]))


@given(st.lists(EXAMPLES, min_size=1, max_size=8))
def test_sums_over_clients_give_the_scores_of_the_corpus(examples: list[tuple[str, list[str], int]]) -> None:
    from sacrebleu import corpus_bleu, corpus_chrf

    parts = [[e for e in examples if e[2] == k] for k in range(3)]  # some clients have no example
    statistics = [text_statistics([p for p, _, _ in part], [r for _, r, _ in part]) for part in parts]
    found = text_metrics(reduce(added, statistics))
    texts, columns = [p for p, _, _ in examples], [list(c) for c in zip_longest(*(r for _, r, _ in examples))]
    assert found["bleu"] == corpus_bleu(texts, columns, force=True).score
    assert found["chrf"] == corpus_chrf(texts, columns).score
    exact = sum(any(p.strip() == r.strip() for r in refs) for p, refs, _ in examples)
    assert found["exact_match"] == exact / len(examples)
    through_json = json.loads(json.dumps({name: value.tolist() for name, value in reduce(added, statistics).items()}))
    assert text_metrics(through_json) == found
    assert tuple(found) == METRICS


@given(st.text("ab c", max_size=9), st.lists(st.text("ab c", max_size=9), min_size=1, max_size=3))
def test_rouge_l_is_the_best_f_of_common_subsequences(prediction: str, references: list[str]) -> None:
    def f(reference: str) -> float:
        p, r = prediction.split(), reference.split()
        return 2 * longest_common(p, r) / (len(p) + len(r)) if p and r else 0.0

    (found,) = text_statistics([prediction], [references])["rouge_l"]
    assert found == pytest.approx(max(map(f, references)), abs=1e-12)


def test_statistics_have_the_shapes_that_they_declare() -> None:
    for texts, references in (([], []), (["a b"], [["a c", "b"]])):
        found = text_statistics(texts, references)
        assert {name: (value.shape, value.dtype.type) for name, value in found.items()} == STATISTICS
        assert found["examples"] == len(texts)


def test_known_values() -> None:
    references = [["the cat sat on the mat"], ["hello there", " hello world "]]
    same = text_metrics(text_statistics(["the cat sat on the mat", "hello world"], references))
    assert same["exact_match"] == same["rouge_l"] == 1
    assert same["chrf"] == pytest.approx(100) and same["bleu"] == pytest.approx(100)
    other = text_metrics(text_statistics(["the cat", "nothing"], references))
    assert other["exact_match"] == 0
    assert other["rouge_l"] == pytest.approx((2 * 1 * (2 / 6) / (1 + 2 / 6)) / 2)


@pytest.mark.parametrize(
    ("predictions", "references", "expected"),
    [
        (["a"], [], "1 predictions and references for 0"),
        (["a", "b"], [["a"], []], "Example 2 has no list of references"),
        (["a"], ["a"], "Example 1 has no list of references"),
    ],
)
def test_texts_that_do_not_belong_together(predictions: list[str], references: Any, expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        text_statistics(predictions, references)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"bleu": [1, 2]}, "bleu should be 10 whole numbers"),
        ({"chrf": [0.5] * 18}, "chrf should be 18 whole numbers"),
        ({"rouge_l": [float("nan")]}, "rouge_l should be 1 numbers"),
        ({"rouge_l": [[1], [2, 3]]}, "rouge_l should be 1 numbers"),
        ({"examples": [-1]}, "examples should be 1 whole numbers"),
        ({"examples": ["3"]}, "examples should be 1 whole numbers"),
        ({"more": [1]}, "these are"),
        ({"examples": [0]}, "No text was scored"),
    ],
)
def test_statistics_from_elsewhere_are_checked(change: dict[str, Any], expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        text_metrics(text_statistics(["a"], [["a"]]) | change)


def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_a2.tasks.causal_lm.scores.find_spec", lambda name: None)
    for use in (lambda: text_statistics(["a"], [["a"]]), lambda: text_metrics({})):
        with pytest.raises(ConfigError, match=r"pip install 'lora-a2\[text\]'"):
            use()
