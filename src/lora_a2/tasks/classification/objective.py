"""The objective of classification: a head on a sentence vector, and cross-entropy.

Shapes: K clients, N sentences, H the backbone's width, F the width of what enters the last layer, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from lora_a2.core.types import FloatArray
from lora_a2.engine.objective import Batch
from lora_a2.engine.packing import Pooling
from lora_a2.engine.transfer import to_device
from lora_a2.engine.work import Labels


class Classification:
    """The objective of classification; see `engine.objective.Objective`. What it measures of a sentence is its C logits.

    Args:
        head: the last layer, `weight` (C, F) and, if it has one, `bias` (C,), float32.
        pooling: how token vectors become a sentence vector.
        features: (N, H) → (N, F) float32, the layers before the last one, which are never trained; None: there are none.
    """

    def __init__(self, head: Mapping[str, FloatArray], pooling: Pooling, features: nn.Module | None = None) -> None:
        self.pooling: Pooling = pooling
        self.features = features
        self.head: dict[str, Tensor] = {name: torch.tensor(value) for name, value in head.items()}

    def place(self, backbone: nn.Module, dtype: torch.dtype) -> None:
        """Moves the head, which stays in float32."""
        device = next(backbone.parameters()).device
        self.head = {name: value.to(device) for name, value in self.head.items()}
        if self.features is not None:
            self.features.to(device)

    def weights(self, labels: Labels) -> FloatArray:
        """Ones: every sentence counts alike."""
        return np.ones(len(labels), np.float32)

    def logits(self, vectors: Tensor, head: Mapping[str, Tensor] | None = None) -> Tensor:
        """Logits (N, C) float32 of sentence vectors (N, H), by this head or the given one."""
        head = head or self.head
        return nn.functional.linear(self._features(vectors), head["weight"], head.get("bias"))

    def _features(self, vectors: Tensor) -> Tensor:
        found: Tensor = vectors if self.features is None else self.features(vectors)
        return found

    def losses(
        self,
        hidden: Tensor,
        batch: Batch,
        labels: Labels,
        client: Tensor,
        head: Mapping[str, Tensor],
        weights: Mapping[str, Tensor],
    ) -> Tensor:
        """The cross-entropy of each sentence, by the frozen head, or by its own client's head (K, C, F), (K, C)."""
        vectors = batch.vectors(hidden)
        if head:
            every = torch.einsum("nh,kch->knc", self._features(vectors), head["weight"])
            every = every + head["bias"][:, None] if "bias" in head else every
            logits = every[client, torch.arange(len(client), device=client.device)]
        else:
            logits = self.logits(vectors)
        target = to_device(np.asarray(labels), vectors.device)[batch.sentences]
        return nn.functional.cross_entropy(logits, target, reduction="none")

    def outputs(self, hidden: Tensor, batch: Batch, labels: Labels, head: Mapping[str, Tensor]) -> Tensor:
        """Logits (N, C)."""
        return self.logits(batch.vectors(hidden), head)
