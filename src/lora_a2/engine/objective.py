"""What the engine needs of a task: the loss of hidden states, and what is measured of each example.

Shapes: K clients, N examples of a batch in the order of `batch.sentences`, H the backbone's width, W the numbers that are measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from lora_a2.core.types import FloatArray
from lora_a2.engine.packing import PackedBatch, Pooling
from lora_a2.engine.padding import PaddedBatch
from lora_a2.engine.work import Labels

Batch = PackedBatch | PaddedBatch


class Objective(Protocol):
    """What stands on a backbone, and what it is trained towards."""

    @property
    def pooling(self) -> Pooling:
        """How token vectors become an example's vector."""

    @property
    def head(self) -> Mapping[str, Tensor]:
        """The tensors on top of the backbone that clients may train, as they are at the start."""

    def place(self, backbone: torch.nn.Module, dtype: torch.dtype) -> None:
        """Is called once the backbone lies where, and in the number type in which, it is computed; and again when a weight of it
        other than a target module's has moved."""

    def weights(self, labels: Labels) -> FloatArray:
        """(n,) float32: what each of n examples counts in a mean loss."""

    def losses(
        self,
        hidden: Tensor,
        batch: Batch,
        labels: Labels,
        client: Tensor,
        head: Mapping[str, Tensor],
        weights: Mapping[str, Tensor],
    ) -> Tensor:
        """(N,) float32, the loss of each example, not divided by its weight.

        Args:
            hidden: what the backbone gives for the batch.
            batch: the batch.
            labels: of the examples, in the order in which they were given to the batch.
            client: (N,) int64, whose each example is.
            head: a trained head's tensors (K, …); empty: `self.head` as it is.
            weights: weights of the backbone, by name, that stand in for its own; empty: its own.
        """

    def outputs(self, hidden: Tensor, batch: Batch, labels: Labels, head: Mapping[str, Tensor]) -> Tensor:
        """(N, W) float32, what is measured of each example; `head` (…) stands in for `self.head` unless it is empty."""
