"""Language models that write: the loss of the tokens that are learnt, perplexity, and what they write."""

from __future__ import annotations

import math

import numpy as np

from lora_a2.core.types import FloatArray
from lora_a2.engine.work import Labels
from lora_a2.settings.task import CAUSAL_LM
from lora_a2.tasks.base import Statistics, Task
from lora_a2.tasks.causal_lm.encoding import encode

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
    """Mean loss of a learnt token, e to its power, and the share of learnt tokens that are the likeliest."""
    tokens = float(found["learnt_tokens"])
    loss = float(found["loss_sum"]) / tokens
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, _LARGEST_LOSS)),
        "token_accuracy": float(found["correct_tokens"]) / tokens,
    }


def limits(num_examples: int, max_length: int) -> dict[str, int | float]:
    """The most that a node's sums can be; a float32 logit lets a token's loss be no larger than this."""
    tokens = num_examples * max_length
    return {"loss_sum": tokens * _LARGEST_TOKEN_LOSS, "learnt_tokens": tokens, "correct_tokens": tokens}


TASK = Task(
    name=CAUSAL_LM,
    encode=encode,
    primary="perplexity",
    measures={"perplexity": "perplexity", "loss": "loss", "token_accuracy": "token accuracy"},
    plural="perplexities",
    higher_is_better=False,
    shared=("num_examples", "loss_sum", "learnt_tokens", "correct_tokens"),
    limits=limits,
    statistics=statistics,
    metrics=metrics,
    show=lambda value: f"{value:.2f}" if value < _LONGEST else f"{value:.3g}",
    command="generate",
    absolute=("loss", "perplexity", "bleu", "chrf"),
)
