"""What a task's record says of its metrics: names, direction, and values as text."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_a2.errors import ConfigError
from lora_a2.tasks import causal_lm, classification
from lora_a2.tasks.base import CLIENT_FIGURES, Task, evaluate, flattened
from lora_a2.tasks.causal_lm.scores import text_statistics
from lora_a2.tasks.registry import TASKS, measured, task_of

LABELLING, WRITING = classification.TASK, causal_lm.TASK
EVERY = pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))


@EVERY
def test_every_metric_has_a_name_and_the_primary_one_is_first(task: Task) -> None:
    counts = {name: np.array(3) for name in task.shared}
    assert set(task.metrics(counts)) <= set(task.measures)
    assert next(iter(task.measures)) == task.primary
    assert task.headline.lower() == task.shown == task.measures[task.primary]
    assert measured(task.metrics(counts)) is task
    assert [other.primary in task.measures for other in TASKS.values()].count(True) == 1


def test_values_as_text() -> None:
    assert LABELLING.show_metric("macro_f1", 0.7134) == LABELLING.show_metric("client_mean", 0.7134) == "71.3 %"
    assert (LABELLING.number("accuracy", 0.7134), LABELLING.unit()) == ("71.3", " %")
    assert LABELLING.title("macro_f1") == "Macro-F1"
    assert [WRITING.show_metric(name, 26.921) for name in ("perplexity", *CLIENT_FIGURES)] == ["26.92"] * 4
    assert [WRITING.show_metric(*pair) for pair in (("loss", 3.29291), ("token_accuracy", 0.4524))] == [
        "3.293",
        "45.2 %",
    ]
    assert (WRITING.number("token_accuracy", 0.4524), WRITING.unit("token_accuracy")) == ("45.2", " %")
    assert (WRITING.unit(), WRITING.unit("client_std"), WRITING.unit("loss")) == ("", "", "")
    assert LABELLING.difference(0.7, 0.712) == "−1.2 points"
    assert WRITING.difference(20.0, 21.5) == "−1.50"
    assert WRITING.difference(21.5, 20.0) == "+1.50"


def test_a_broken_model_s_perplexity_is_a_short_text_and_its_figures_are_numbers() -> None:
    sums = {"num_examples": 1, "loss_sum": 1e6, "learnt_tokens": 2, "correct_tokens": 0}
    counts = {name: np.array(value) for name, value in sums.items()}
    one = {**counts, "loss_sum": np.array(2.0)}
    found = evaluate(WRITING, counts, {"a": counts, "b": one})
    assert len(WRITING.show(found.metrics["perplexity"])) < 12
    assert all(math.isfinite(value) for value in (found.client_mean or 0, found.client_std or 0))


@given(best=st.floats(0.01, 1), value=st.floats(0.01, 1), share=st.floats(0.1, 1))
def test_what_should_be_large_reaches_a_share_of_the_best(best: float, value: float, share: float) -> None:
    assert LABELLING.reaches(value, share, best) == (value >= share * best)
    assert LABELLING.reaches(best, share, best)


@given(best=st.floats(1, 1e3), value=st.floats(1, 1e3), share=st.floats(0.1, 1))
def test_what_should_be_small_exceeds_the_best_by_no_more(best: float, value: float, share: float) -> None:
    assert WRITING.reaches(value, share, best) == (value * share <= best)
    assert WRITING.reaches(best, share, best)
    assert (WRITING.worse(value) > WRITING.worse(best)) == (value > best)


def test_optional_metrics_are_columns_where_they_were_measured() -> None:
    every = ("perplexity", "loss", "token_accuracy")
    assert WRITING.columns([]) == WRITING.columns([{}, {"perplexity": 2.0}]) == every
    assert WRITING.columns([{}, {"bleu": 3.0}]) == (*every, "bleu")
    assert LABELLING.columns([]) == ("accuracy", "macro_f1")
    assert set(WRITING.optional) <= set(WRITING.measures)
    assert [WRITING.show_metric(*pair) for pair in (("bleu", 12.345), ("rouge_l", 0.5))] == ["12.35", "50.0 %"]
    assert WRITING.title("rouge_l") == "ROUGE-L"


def test_the_task_of_a_run() -> None:
    assert task_of([]) is LABELLING
    assert task_of([{}, {"perplexity": 3.0}], {"task": "classification"}) is WRITING
    assert task_of([{}], {"task": "causal-lm"}) is WRITING
    with pytest.raises(ConfigError, match="Unknown task 'singing'"):
        task_of([], {"task": "singing"})


FULL = {"num_correct": 3, "loss_sum": 9.5, "learnt_tokens": 12, "correct_tokens": 4}


@pytest.mark.parametrize(
    ("task", "name", "value"),
    [
        ("classification", "num_correct", 6),
        ("classification", "num_correct", 2.0),
        ("classification", "num_correct", True),
        ("causal-lm", "learnt_tokens", 4),  # in each of 5 examples something is learnt
        ("causal-lm", "learnt_tokens", 5 * 20 + 1),
        ("causal-lm", "learnt_tokens", 12.0),
        ("causal-lm", "correct_tokens", 13),
        ("causal-lm", "correct_tokens", -1),
        ("causal-lm", "loss_sum", -0.5),
        ("causal-lm", "loss_sum", float("nan")),
        ("causal-lm", "loss_sum", float("inf")),
        ("causal-lm", "loss_sum", "much"),
        ("causal-lm", "loss_sum", None),
    ],
)
def test_what_a_node_cannot_have_measured_is_refused(task: str, name: str, value: object) -> None:
    record = TASKS[task]
    sound = record.received(FULL, 5, 20, False)
    assert record.metrics(sound)[record.primary] > 0
    with pytest.raises(ValueError, match=name):
        record.received({**FULL, name: value}, 5, 20, False)


def test_scores_of_texts_that_cannot_be_are_refused() -> None:
    record = TASKS["causal-lm"]
    written = flattened(text_statistics(["a b c d", "x"], [["a b c d"], ["y"]]))
    assert record.metrics(record.received({**FULL, **written}, 5, 20, True))["exact_match"] == 0.5
    for name, value in (
        ("examples.0", 6),
        ("exact_matches.0", 3),
        ("rouge_l.0", 2.5),
        ("bleu.4", 1 << 22),
        ("chrf.0", 0.5),
    ):
        with pytest.raises(ValueError, match=r"that cannot be|more n-grams|whole numbers"):
            record.received({**FULL, **written, name: value}, 5, 20, True)
    with pytest.raises(ValueError, match="nothing of"):
        record.received(FULL, 5, 20, True)
