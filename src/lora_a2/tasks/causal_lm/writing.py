"""What a model in training writes in answer to test prompts, and how close that is to their references."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lora_a2.core.randomness import generator
from lora_a2.core.types import Adapter, BaseDelta
from lora_a2.engine.network import Network
from lora_a2.engine.pool import Pool
from lora_a2.engine.work import TokenizedExamples
from lora_a2.errors import ConfigError
from lora_a2.tasks.causal_lm.encoding import IGNORED
from lora_a2.tasks.causal_lm.generation import generate_texts
from lora_a2.tasks.causal_lm.sampling_options import SamplingOptions
from lora_a2.tasks.causal_lm.scores import require_metrics

LONGEST_ANSWER = 128
"""Tokens of an answer at most, as of `lora-a2 generate`."""
_AT_ONCE = 8


class WritingModel(Protocol):
    """A language model as the engine has it, and as a whole around the same weights."""

    @property
    def network(self) -> Network:
        """Its backbone, with LoRA layers."""

    @property
    def whole(self) -> PreTrainedModel | None:
        """The model with its head, of which the network's backbone is a part."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer."""


def require_writing(model: WritingModel) -> None:
    """Refuses a model that cannot be asked to write, before any round.

    Raises:
        ConfigError: it classifies, or what measures texts is not installed.
    """
    if model.whole is None:
        raise ConfigError("generate: a classifier writes nothing; leave it out.")
    require_metrics()


def prompt_of(ids: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """What stands before the last answer of an example: token ids (length,)."""
    learnt = np.flatnonzero(labels != IGNORED)
    outside = np.setdiff1d(np.arange(learnt[-1]), learnt)
    return ids[: int(outside[-1]) + 1] if len(outside) else ids[:1]


def chosen_examples(examples: TokenizedExamples, number: int, seed: int) -> np.ndarray:
    """Rows (m,) of the examples that are answered in every evaluation: at most `number` of those with a reference, in order."""
    rows = np.array([i for i, own in enumerate(examples.references) if own], np.int64)
    drawn: np.ndarray = generator(seed, "generate").permutation(rows)[:number]
    return np.sort(drawn)


def write(
    model: WritingModel, pool: Pool, adapter: Adapter | None, base: BaseDelta, examples: TokenizedExamples
) -> list[str]:
    """An answer to the prompt of each example, of the adapter on base weights moved by `base`."""
    assert model.whole is not None and isinstance(examples.labels, tuple), "the model writes"
    prompts = [prompt_of(ids, labels) for ids, labels in zip(examples.input_ids, examples.labels, strict=True)]
    order = np.argsort([len(prompt) for prompt in prompts], kind="stable")
    chunks = [order[i : i + _AT_ONCE] for i in range(0, len(order), _AT_ONCE)]

    def work(network: Network, rows: np.ndarray) -> list[str]:
        network.set_base(base)
        return answers(model, network, adapter, [prompts[i] for i in rows])

    found = [text for part in pool.map(work, chunks) for text in part]
    texts = [""] * len(found)
    for place, text in zip(order, found, strict=True):
        texts[place] = text
    return texts


def answers(model: WritingModel, network: Network, adapter: Adapter | None, prompts: Sequence[np.ndarray]) -> list[str]:
    """As `write`, in this process, on the network's base weights."""
    assert model.whole is not None, "the model writes"
    network.load(adapter)
    with network.called_plainly():
        options = SamplingOptions(max_new_tokens=LONGEST_ANSWER)
        return generate_texts(model.whole, model.tokenizer, prompts, options, batch_size=_AT_ONCE)
