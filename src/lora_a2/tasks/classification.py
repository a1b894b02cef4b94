"""Labelling texts: a linear head on a sentence vector, cross-entropy, accuracy.

Shapes: K clients, N sentences, H the backbone's width, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from lora_a2.core.types import FloatArray
from lora_a2.data.labelled import Examples
from lora_a2.engine.objective import Batch
from lora_a2.engine.packing import Pooling
from lora_a2.engine.transfer import to_device
from lora_a2.engine.work import Labels, TokenizedExamples
from lora_a2.errors import ModelError
from lora_a2.tasks.base import Encoded, EncodingOptions, Statistics, Task
from lora_a2.tasks.names import CLASSIFICATION

LARGEST_UNKNOWN_SHARE = 0.5
"""Of a data set's tokens, special ones apart."""


class Classification:
    """The objective of classification; see `engine.objective.Objective`. What it measures of a sentence is its C logits.

    Args:
        head: `weight` (C, H) and `bias` (C,), float32.
        pooling: how token vectors become a sentence vector.
    """

    def __init__(self, head: Mapping[str, FloatArray], pooling: Pooling) -> None:
        self.pooling: Pooling = pooling
        self.head: dict[str, Tensor] = {name: torch.tensor(value) for name, value in head.items()}

    def place(self, backbone: nn.Module, dtype: torch.dtype) -> None:
        """Moves the head, which stays in float32."""
        device = next(backbone.parameters()).device
        self.head = {name: value.to(device) for name, value in self.head.items()}

    def weights(self, labels: Labels) -> FloatArray:
        """Ones: every sentence counts alike."""
        return np.ones(len(labels), np.float32)

    def logits(self, vectors: Tensor, head: Mapping[str, Tensor] | None = None) -> Tensor:
        """Logits (N, C) float32 of sentence vectors (N, H), by this head or the given one."""
        head = head or self.head
        return nn.functional.linear(vectors, head["weight"], head["bias"])

    def losses(
        self,
        hidden: Tensor,
        batch: Batch,
        labels: Labels,
        client: Tensor,
        head: Mapping[str, Tensor],
        weights: Mapping[str, Tensor],
    ) -> Tensor:
        """The cross-entropy of each sentence, by the frozen head, or by its own client's head (K, C, H), (K, C)."""
        vectors = batch.vectors(hidden)
        if head:
            every = torch.einsum("nh,kch->knc", vectors, head["weight"]) + head["bias"][:, None]
            logits = every[client, torch.arange(len(client), device=client.device)]
        else:
            logits = self.logits(vectors)
        target = to_device(np.asarray(labels), vectors.device)[batch.sentences]
        return nn.functional.cross_entropy(logits, target, reduction="none")

    def outputs(self, hidden: Tensor, batch: Batch, labels: Labels, head: Mapping[str, Tensor]) -> Tensor:
        """Logits (N, C)."""
        return self.logits(batch.vectors(hidden), head)


def tokenized(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> tuple[np.ndarray, ...]:
    """Token ids (length,) int64 of each text, with the model's special tokens, cut at `max_length`; padding for an empty text."""
    if not texts:
        return ()
    encoded = tokenizer(list(texts), truncation=True, max_length=max_length)
    padding = int(tokenizer.pad_token_id or 0)
    return tuple(np.asarray(ids or [padding], np.int64) for ids in encoded["input_ids"])


def encode(tokenizer: PreTrainedTokenizerBase, examples: Examples, options: EncodingOptions) -> Encoded:
    """Texts of a data set, which the tokenizer has to know, and their class numbers.

    Raises:
        ModelError: most of their tokens are unknown to it.
    """
    tokens = tokenized(tokenizer, examples.texts, options.max_length)
    require_known(tokenizer, tokens)
    return Encoded(TokenizedExamples(tokens, examples.labels), np.arange(len(tokens)))


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


TASK = Task(
    name=CLASSIFICATION,
    encode=encode,
    primary="accuracy",
    higher_is_better=True,
    shared=("num_examples", "num_correct"),
    limits=lambda num_examples, max_length: {"num_correct": num_examples},
    statistics=statistics,
    metrics=metrics,
    shown="accuracy",
    show=lambda value: f"{100 * value:.1f} %",
    command="predict",
)
