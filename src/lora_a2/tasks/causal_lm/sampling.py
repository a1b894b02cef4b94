"""How the next token is chosen, by `SamplingOptions`: draws that a seed and a prompt determine.

A token is drawn by adding Gumbel noise to the logits and taking the largest, which is a draw from their softmax (Gumbel:
"Statistical Theory of Extreme Values and Some Practical Applications", 1954; Maddison, Tarlow, Minka: "A* Sampling", NeurIPS
2014, https://arxiv.org/abs/1411.0030). The noise of a text comes from the seed and its prompt alone, so that the text is the same
whatever other prompts are in its batch, and no global random state is touched.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

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
from lora_a2.tasks.causal_lm.sampling_options import SamplingOptions


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
