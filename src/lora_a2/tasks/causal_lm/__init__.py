"""Language models that write: the loss of the tokens that are learnt, perplexity, and what they write."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from lora_a2.core.types import FloatArray
from lora_a2.engine.work import Labels
from lora_a2.errors import DataError
from lora_a2.settings.task import CAUSAL_LM
from lora_a2.tasks.base import Statistics, Task, stated
from lora_a2.tasks.causal_lm.encoding import encode
from lora_a2.tasks.causal_lm.scores import METRICS as TEXT_METRICS
from lora_a2.tasks.causal_lm.scores import STATISTICS as TEXTS
from lora_a2.tasks.causal_lm.scores import checked_statistics, text_metrics

_LARGEST_LOSS = 350.0
"""The square of e to a larger power, which a standard deviation takes, is no float any more."""
_LONGEST = 1e6
"""A perplexity from here on is that of a broken model, and is shown in short."""
_LARGEST_TOKEN_LOSS = 1e4
"""Of any model that is not broken: logits are in the tens."""
_LARGEST_COUNT = 1 << 20
"""n-grams of one text and its references."""


def statistics(outputs: FloatArray, labels: Labels) -> Statistics:
    """Sums of what `CausalLM` measures: examples, loss, learnt tokens, right ones."""
    sums = outputs.astype(np.float64).sum(0) if len(labels) else np.zeros(3)
    return {
        "num_examples": np.array(len(labels)),
        "loss_sum": sums[0],
        "learnt_tokens": np.array(round(sums[1])),
        "correct_tokens": np.array(round(sums[2])),
    }


def metrics(found: Statistics) -> dict[str, float]:
    """Mean loss of a learnt token, e to its power, and the share of learnt tokens that are the likeliest; and the metrics of texts
    where some were written."""
    tokens = float(found["learnt_tokens"])
    loss = float(found["loss_sum"]) / tokens
    figures = {
        "loss": loss,
        "perplexity": math.exp(min(loss, _LARGEST_LOSS)),
        "token_accuracy": float(found["correct_tokens"]) / tokens,
    }
    if "examples" in found and found["examples"][0] > 0:
        figures |= text_metrics({name: found[name] for name in TEXTS})
    return figures


def received(values: Mapping[str, object], num_examples: int, max_length: int, texts: bool) -> Statistics:
    """The sums of a node's examples, in each of which something is learnt; and, with `texts`, of what its model wrote."""
    learnt = stated(values, "learnt_tokens", num_examples, num_examples * max_length)
    found = {
        "num_examples": np.array(num_examples),
        "loss_sum": stated(values, "loss_sum", 0, float(learnt) * _LARGEST_TOKEN_LOSS, whole=False),
        "learnt_tokens": learnt,
        "correct_tokens": stated(values, "correct_tokens", 0, int(learnt)),
    }
    return {**found, **_received_texts(values, num_examples)} if texts else found


def _received_texts(values: Mapping[str, object], num_examples: int) -> Statistics:
    lists = {name: [values.get(f"{name}.{k}") for k in range(math.prod(shape))] for name, (shape, _) in TEXTS.items()}
    if absent := [name for name, own in lists.items() if None in own]:
        raise ValueError(f"nothing of {absent[0]}")
    try:
        found = checked_statistics(lists)
    except DataError as error:
        raise ValueError(str(error)) from None
    written = int(found["examples"][0])
    if written > num_examples or found["exact_matches"][0] > written or found["rouge_l"][0] > written:
        raise ValueError(f"scores of {written} texts of {num_examples} examples that cannot be")
    if max(found["bleu"].max(), found["chrf"].max()) > written * _LARGEST_COUNT:
        raise ValueError(f"more n-grams than {written} texts have")
    return found


TASK = Task(
    name=CAUSAL_LM,
    encode=encode,
    primary="perplexity",
    measures={
        "perplexity": "perplexity",
        "loss": "loss",
        "token_accuracy": "token accuracy",
        "exact_match": "exact match",
        "rouge_l": "ROUGE-L",
        "bleu": "BLEU",
        "chrf": "chrF",
    },
    plural="perplexities",
    higher_is_better=False,
    shared=("num_examples", "loss_sum", "learnt_tokens", "correct_tokens"),
    received=received,
    statistics=statistics,
    metrics=metrics,
    show=lambda value: f"{value:.2f}" if value < _LONGEST else f"{value:.3g}",
    command="generate",
    optional=TEXT_METRICS,
    absolute=("loss", "perplexity", "bleu", "chrf"),
)
