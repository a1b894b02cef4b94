"""Padded batches, for models whose attention does not go through Transformers' attention interface. Slower than packed ones.

Shapes: K clients, S sentences a client (the most of the cohort), L tokens a sentence (the longest), N sentences in all. Rows are
client by client, as the cohort LoRA layer wants them: what pads is a sentence of one padding token, which nothing reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lora_a2.engine.packing import Pooling, pool_weights
from lora_a2.engine.transfer import CPU, to_device


@dataclass(frozen=True)
class PaddedBatch:
    """The sentences of K clients' batches; used as `PackedBatch` is.

    Attributes:
        input_ids, attention_mask: (K·S, L) int64.
        rows: (N,) int64, where the sentences are among the K·S.
        pool: (N, 1, L) float32, the weights that make a sentence's vector of its tokens' vectors.
        sentences: (N,) int64, 0 … N − 1: vectors come in the order given to `pad`.
        first_rows: (N,) int64 on the host, the row of each sentence's first token among the K·S·L.
    """

    input_ids: Tensor
    attention_mask: Tensor
    rows: Tensor
    pool: Tensor
    sentences: Tensor
    first_rows: np.ndarray

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What the backbone is called with."""
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask}

    def vectors(self, hidden: Tensor) -> Tensor:
        """Sentence vectors (N, width) float32 of hidden states (K·S, L, width)."""
        return torch.bmm(self.pool, hidden.index_select(0, self.rows).float())[:, 0]


def pad(
    cohort: Sequence[Sequence[np.ndarray]],
    *,
    pooling: Pooling,
    pad_token_id: int = 0,
    device: torch.device = CPU,
) -> PaddedBatch:
    """Pads the token ids of each client's sentences (each int64 (length,), not empty) on the right; some clients may have none."""
    most = max(len(sentences) for sentences in cohort)
    rows = np.concatenate([k * most + np.arange(len(sentences)) for k, sentences in enumerate(cohort)])
    flat = [s for sentences in cohort for s in sentences]
    length = np.array([len(s) for s in flat])
    inside = np.arange(int(length.max())) < length[:, None]
    ids = np.full((len(cohort) * most, inside.shape[1]), pad_token_id, np.int64)
    mask = np.zeros_like(ids)
    mask[:, 0] = 1  # attention to nothing at all would be 0 / 0
    for row, sentence in zip(rows, flat, strict=True):
        ids[row, : len(sentence)], mask[row, : len(sentence)] = sentence, 1
    values = (ids, mask, rows, pool_weights(inside, length, pooling), np.arange(len(flat)))
    input_ids, attention_mask, places, pool, sentences = (to_device(v, device) for v in values)
    return PaddedBatch(input_ids, attention_mask, places, pool, sentences, rows * ids.shape[1])
