"""How the next token is chosen: the options of Transformers' `generate()` by their names, and draws that a seed and a prompt determine.

A token is drawn by adding Gumbel noise to the logits and taking the largest, which is a draw from their softmax (Gumbel:
"Statistical Theory of Extreme Values and Some Practical Applications", 1954; Maddison, Tarlow, Minka: "A* Sampling", NeurIPS
2014, https://arxiv.org/abs/1411.0030). The noise of a text comes from the seed and its prompt alone, so that the text is the same
whatever other prompts are in its batch, and no global random state is touched.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lora_a2.core.randomness import generator
from lora_a2.errors import ConfigError

_OF_SAMPLING = ("temperature", "top_k", "top_p", "seed")


@dataclass(frozen=True)
class SamplingOptions:
    """Names, meanings and defaults as in Transformers' `generate()`; nothing is taken from a model's own generation config.

    Attributes:
        max_new_tokens: most tokens of an answer.
        do_sample: draw tokens; otherwise the likeliest is taken, or the likeliest of `num_beams` continuations.
        temperature: divides the logits before drawing.
        top_k: only so many of the likeliest tokens are drawn from; 0: all.
        top_p: only the likeliest tokens that together have this probability are drawn from.
        repetition_penalty: divides the positive logits of tokens of prompt and answer, and multiplies negative ones.
        num_beams: continuations that are followed side by side.
        seed: of the draws.

    Raises:
        ConfigError: a value is out of range, or has no effect beside the others.
    """

    max_new_tokens: int = 128
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    num_beams: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("max_new_tokens", 1), ("top_k", 0), ("num_beams", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"{_key(name)}: {value!r} should be a whole number from {least} on.")
        for name in ("temperature", "repetition_penalty", "top_p"):
            _check_positive(name, getattr(self, name))
        if self.top_p > 1:
            raise ConfigError(f"top-p: {self.top_p} should be at most 1.")
        for field in fields(self):
            if field.name in _OF_SAMPLING and not self.do_sample and getattr(self, field.name) != field.default:
                raise ConfigError(
                    f"{_key(field.name)}: it has no effect here; it needs do-sample. Leave it out otherwise."
                )
        if self.do_sample and self.num_beams > 1:
            raise ConfigError(f"num-beams: {self.num_beams} beams are followed without drawing; leave out do-sample.")


def _key(name: str) -> str:
    return name.replace("_", "-")


def _check_positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ConfigError(f"{_key(name)}: {value!r} should be a number greater than 0.")


def logits_processors(prompts: Sequence[np.ndarray], options: SamplingOptions) -> LogitsProcessorList:
    """What `generate()` does to the logits (rows, V) of left-padded `prompts`, `num_beams` rows each, before the largest is taken."""
    found = LogitsProcessorList()
    if options.repetition_penalty != 1:
        lengths = [len(prompt) for prompt in prompts for _ in range(options.num_beams)]
        found.append(_Penalty(options.repetition_penalty, [max(lengths) - length for length in lengths]))
    if not options.do_sample:
        return found
    if options.temperature != 1:
        found.append(TemperatureLogitsWarper(float(options.temperature)))
    if options.top_k:
        found.append(TopKLogitsWarper(options.top_k))
    if options.top_p < 1:
        found.append(TopPLogitsWarper(float(options.top_p)))
    found.append(_Noise([_generator(prompt, options.seed) for prompt in prompts]))
    return found


def _generator(prompt: np.ndarray, seed: int) -> np.random.Generator:
    digest = hashlib.blake2b(np.asarray(prompt, "<i8").tobytes(), digest_size=16).hexdigest()
    return generator(seed, f"generation/{digest}")


class _Penalty(LogitsProcessor):
    """Keskar, McCann, Varshney, Xiong, Socher: "CTRL", 2019, https://arxiv.org/abs/1909.05858. Padding counts as no repetition."""

    def __init__(self, penalty: float, padding: Sequence[int]) -> None:
        self._penalty, self._padding = penalty, padding

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        for row, start in enumerate(self._padding):
            seen = torch.unique(input_ids[row, start:])
            found = scores[row, seen]
            scores[row, seen] = torch.where(found < 0, found * self._penalty, found / self._penalty)
        return scores


class _Noise(LogitsProcessor):
    """Adds Gumbel noise, each row's from its own generator."""

    def __init__(self, generators: Sequence[np.random.Generator]) -> None:
        self._generators = generators

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        noise = np.stack([rng.gumbel(size=scores.shape[1]).astype(np.float32) for rng in self._generators])
        return scores + torch.from_numpy(noise).to(scores.device)
