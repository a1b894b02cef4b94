"""Labelling texts: accuracy, and the mean F1 of the classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lora_a2.core.types import FloatArray
from lora_a2.data.labelled import Examples
from lora_a2.engine.work import Labels, TokenizedExamples
from lora_a2.errors import ModelError
from lora_a2.settings.task import CLASSIFICATION
from lora_a2.tasks.base import Encoded, EncodingOptions, Guess, Statistics, Task, stated
from lora_a2.tasks.classification.classes import class_tables

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

LARGEST_UNKNOWN_SHARE = 0.5
"""Of a data set's tokens, special ones apart."""


def tokenized(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int, strips_padding: bool = False
) -> tuple[np.ndarray, ...]:
    """Token ids (length,) int64 of each text, with the model's special tokens, cut at `max_length`; padding for an empty text.

    `strips_padding`: without padding tokens at the end, which some tokenizers end a text with.
    """
    if not texts:
        return ()
    return _arrays(tokenizer, _cut(tokenizer, texts, max_length), strips_padding)


def _cut(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> BatchEncoding:
    encoded: BatchEncoding = tokenizer(list(texts), truncation=True, max_length=max_length)
    return encoded


def _arrays(tokenizer: PreTrainedTokenizerBase, encoded: BatchEncoding, strips_padding: bool) -> tuple[np.ndarray, ...]:
    padding = int(tokenizer.pad_token_id or 0)
    found = [np.asarray(ids or [padding], np.int64) for ids in encoded["input_ids"]]
    return tuple(_stripped(ids, padding) if strips_padding else ids for ids in found)


def _count_cut(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], encoded: BatchEncoding, max_length: int
) -> int:
    """How many of the texts are longer than `max_length`; slow tokenizers do not say, and are asked for one token more."""
    if encoded.encodings is not None:
        return sum(bool(each.overflowing) for each in encoded.encodings)
    full = [text for text, ids in zip(texts, encoded["input_ids"], strict=True) if len(ids) >= max_length]
    return sum(len(ids) > max_length for ids in _cut(tokenizer, full, max_length + 1)["input_ids"]) if full else 0


def _stripped(ids: np.ndarray, padding: int) -> np.ndarray:
    """Without the padding at its end; of nothing else, the first is left."""
    other = np.flatnonzero(ids != padding)
    return ids[: other[-1] + 1 if len(other) else 1]


def encode(tokenizer: PreTrainedTokenizerBase, examples: Examples, options: EncodingOptions) -> Encoded:
    """Texts of a data set, which the tokenizer has to know, and their class numbers.

    Raises:
        ModelError: most of their tokens are unknown to it.
    """
    if not len(examples):
        return Encoded(TokenizedExamples((), examples.labels), np.arange(0))
    encoded = _cut(tokenizer, examples.texts, options.max_length)
    tokens = _arrays(tokenizer, encoded, options.strips_padding)
    require_known(tokenizer, tokens)
    num_cut = _count_cut(tokenizer, examples.texts, encoded, options.max_length)
    return Encoded(TokenizedExamples(tokens, examples.labels), np.arange(len(tokens)), num_cut)


def require_known(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[np.ndarray]) -> None:
    """Refuses texts that the tokenizer does not know.

    Raises:
        ModelError: most of their tokens, special ones apart, are unknown.
    """
    unknown, special = tokenizer.unk_token_id, tokenizer.all_special_ids
    if unknown is None or not tokens:
        return
    flat = np.concatenate(tokens)
    words = flat[~np.isin(flat, [i for i in special if i != unknown])]
    share = float((words == unknown).mean()) if len(words) else 0.0
    if share > LARGEST_UNKNOWN_SHARE:
        raise ModelError(
            f"The model's tokenizer does not know {100 * share:.0f} % of the tokens in these texts, which all look alike "
            "to the model: choose a model for their language, or give the folder the tokenizer that the model was trained with."
        )


def statistics(logits: FloatArray, labels: Labels) -> Statistics:
    """Counts: examples, right ones, and, of each class (C,), hits, predictions and labels."""
    classes, given = logits.shape[1], np.asarray(labels)
    predicted = logits.argmax(1) if len(given) else np.zeros(0, np.int64)
    return {
        "num_examples": np.array(len(given)),
        "num_correct": np.array((predicted == given).sum()),
        "hits": np.bincount(given[predicted == given], minlength=classes),
        "predicted": np.bincount(predicted, minlength=classes),
        "labels": np.bincount(given, minlength=classes),
    }


def metrics(found: Statistics) -> dict[str, float]:
    """Accuracy, and, where the counts of classes are there, the mean over those that occur of F1 = 2·TP / (2·TP + FP + FN)."""
    figures = {"accuracy": float(found["num_correct"] / found["num_examples"])}
    if "hits" in found:
        total = found["predicted"] + found["labels"]
        occurs = total > 0
        figures["macro_f1"] = float((2 * found["hits"][occurs] / total[occurs]).mean())
    return figures


def largest_class(found: Statistics) -> float | None:
    """The accuracy of always guessing the class with the most of these examples; None without the counts of classes."""
    return float(found["labels"].max() / found["num_examples"]) if "labels" in found else None


def received(values: Mapping[str, object], num_examples: int, max_length: int, texts: bool) -> Statistics:
    """How many of a node's examples are right."""
    return {"num_examples": np.array(num_examples), "num_correct": stated(values, "num_correct", 0, num_examples)}


TASK = Task(
    name=CLASSIFICATION,
    encode=encode,
    primary="accuracy",
    measures={"accuracy": "accuracy", "macro_f1": "macro-F1"},
    plural="accuracies",
    higher_is_better=True,
    shared=("num_examples", "num_correct"),
    received=received,
    statistics=statistics,
    metrics=metrics,
    proportions=("accuracy",),
    show=lambda value: f"{100 * value:.1f} %",
    command="predict",
    guess=Guess("majority_accuracy", "Always the largest class", largest_class),
    tables=class_tables,
)
