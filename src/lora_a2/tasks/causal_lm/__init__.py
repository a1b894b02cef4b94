"""Language models that write: the loss of the tokens that are learnt, perplexity, and what they write."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from lora_a2.core.types import FloatArray
from lora_a2.engine.work import Labels
from lora_a2.errors import DataError
from lora_a2.settings.task import CAUSAL_LM
from lora_a2.tasks.base import Statistics, Task
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


def received_texts(values: Mapping[str, object], ending: str) -> Statistics:
    """The statistics of texts that a node states, as `flattened` and with `ending` behind their names.

    Raises:
        ValueError: one is missing, or is none.
    """
    lists = {}
    for name, (shape, _) in TEXTS.items():
        lists[name] = [values.get(f"{name}.{k}{ending}") for k in range(math.prod(shape))]
        if any(value is None for value in lists[name]):
            raise ValueError(f"no {name}{ending}")
    try:
        return checked_statistics(lists)
    except DataError as error:
        raise ValueError(str(error)) from None


def limits(num_examples: int, max_length: int) -> dict[str, int | float]:
    """The most that a node's sums can be; a float32 logit lets a token's loss be no larger than this."""
    tokens = num_examples * max_length
    return {"loss_sum": tokens * _LARGEST_TOKEN_LOSS, "learnt_tokens": tokens, "correct_tokens": tokens}


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
    limits=limits,
    received_texts=received_texts,
    statistics=statistics,
    metrics=metrics,
    show=lambda value: f"{value:.2f}" if value < _LONGEST else f"{value:.3g}",
    command="generate",
    optional=TEXT_METRICS,
    absolute=("loss", "perplexity", "bleu", "chrf"),
)
