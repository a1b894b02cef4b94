"""The loss of a language model that writes: cross-entropy of the next token, where it is learnt.

Logits are formed for learnt tokens only, some at a time, so that memory never holds (tokens × vocabulary). The head is frozen.

Shapes: N examples, M learnt tokens, H the backbone's width, V the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lora_a2.core.types import FloatArray
from lora_a2.engine.kernels.frozen import FrozenWeight
from lora_a2.engine.objective import Batch
from lora_a2.engine.packing import Pooling
from lora_a2.engine.transfer import to_device
from lora_a2.engine.work import Labels
from lora_a2.tasks.causal_lm.encoding import IGNORED

_CHUNK_VALUES = 1 << 24
"""Logits that are held at once."""
_ROWS_MULTIPLE = 32


@dataclass(frozen=True)
class Head:
    """How hidden states become logits: cap(scale · (h Wᵀ + b)), cap(s) = softcap · tanh(s / softcap).

    Attributes:
        weight: (V, H); its own parameter, so that one that is tied to the embeddings is not copied.
        bias: (V,) or None.
        softcap: as in Gemma 2; None: none.
        scale: as in Cohere and Granite.
        tied: the name that the weight has in the backbone, where it is the embeddings'; None: it is not.
    """

    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0
    tied: str | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """(…, V) of hidden states (…, H)."""
        return self.finished(nn.functional.linear(hidden, self.weight, self.bias))

    def finished(self, scores: Tensor) -> Tensor:
        """Logits of the products h Wᵀ + b: scaled and capped."""
        if self.scale != 1:
            scores = scores * self.scale
        return scores if self.softcap is None else self.softcap * torch.tanh(scores / self.softcap)


class CausalLM:
    """The objective of causal language modelling; see `engine.objective.Objective`.

    Labels are as in Transformers: the token itself where it is learnt, else `IGNORED`; the hidden state before a token predicts it.
    What it measures of an example is its summed loss, the number of its learnt tokens, and how many of these are the likeliest.
    """

    pooling: Pooling = "last"

    def __init__(self, head: Head) -> None:
        self._head = head
        self._frozen: FrozenWeight | None = None

    @property
    def head(self) -> Mapping[str, Tensor]:
        """Nothing: the head is not trained."""
        return {}

    def place(self, backbone: nn.Module, dtype: torch.dtype) -> None:
        """Takes the head to the backbone's device, in the compute dtype."""
        device = next(backbone.parameters()).device
        tied = self._head.tied
        weight = self._head.weight if tied is None else backbone.get_parameter(tied)
        bias = self._head.bias
        self._frozen = FrozenWeight(
            weight.detach().to(device, dtype), None if bias is None else bias.detach().to(device, dtype)
        )

    def weights(self, labels: Labels) -> FloatArray:
        """The number of learnt tokens of each example."""
        return np.array([np.count_nonzero(own[1:] != IGNORED) for own in labels], np.float32)

    def losses(
        self,
        hidden: Tensor,
        batch: Batch,
        labels: Labels,
        client: Tensor,
        head: Mapping[str, Tensor],
        weights: Mapping[str, Tensor],
    ) -> Tensor:
        """The summed cross-entropy of each example's learnt tokens."""
        rows, targets, owners = self._learnt(batch, labels, hidden.device)
        vectors = hidden.reshape(-1, hidden.shape[-1]).index_select(0, rows)
        if self._head.tied is not None and self._head.tied in weights:
            tokens = self._plain(vectors, weights[self._head.tied], targets)
        else:
            tokens = _CrossEntropy.apply(vectors, targets, self)  # type: ignore[no-untyped-call]
        sums = torch.zeros(len(labels), device=hidden.device).index_add(0, owners, tokens)
        return sums[batch.sentences]

    def outputs(self, hidden: Tensor, batch: Batch, labels: Labels, head: Mapping[str, Tensor]) -> Tensor:
        """(N, 3): summed loss, learnt tokens, right ones among them."""
        rows, targets, owners = self._learnt(batch, labels, hidden.device)
        vectors = hidden.reshape(-1, hidden.shape[-1]).index_select(0, rows)
        found = torch.zeros(len(labels), 3, device=hidden.device)
        for part in self.chunks(len(targets)):
            logits, target = self.logits(vectors[part]), targets[part]
            loss = nn.functional.cross_entropy(logits, target, reduction="none")
            right = (logits.argmax(1) == target).float()
            found.index_add_(0, owners[part], torch.stack([loss, torch.ones_like(loss), right], 1))
        return found[batch.sentences]

    def logits(self, vectors: Tensor) -> Tensor:
        """(M, V) float32 of hidden states (M, H); no gradient passes."""
        assert self._frozen is not None, "the objective is placed before it is used"
        return self._head.finished(self._frozen.product(vectors).float())

    def chunks(self, count: int) -> list[slice]:
        """Learnt tokens whose logits are held at once."""
        assert self._frozen is not None, "the objective is placed before it is used"
        size = max(1, _CHUNK_VALUES // len(self._frozen.weight) // _ROWS_MULTIPLE) * _ROWS_MULTIPLE
        return [slice(start, min(start + size, count)) for start in range(0, count, size)]

    def _plain(self, vectors: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy (M,) by a weight that gets a gradient itself."""
        bias = None if self._head.bias is None else self._head.bias.to(vectors.device, vectors.dtype)
        scores = nn.functional.linear(vectors, weight, bias).float()
        return nn.functional.cross_entropy(self._head.finished(scores), targets, reduction="none")

    def cross_entropy(self, vectors: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy (M,) float32 and its gradient (M, H) by the vectors, one chunk of logits after the other."""
        assert self._frozen is not None, "the objective is placed before it is used"
        losses, gradient = torch.empty(len(targets), device=vectors.device), torch.empty_like(vectors)
        for part in self.chunks(len(targets)):
            scores = self.logits(vectors[part])
            target = targets[part, None]
            total = scores.logsumexp(1)
            losses[part] = total - scores.gather(1, target)[:, 0]
            slope = None if self._head.softcap is None else 1 - (scores / self._head.softcap) ** 2
            probability = scores.sub_(total[:, None]).exp_()
            probability.scatter_add_(1, target, -torch.ones_like(target, dtype=torch.float32))
            if slope is not None:
                probability *= slope
            if self._head.scale != 1:
                probability *= self._head.scale
            gradient[part] = self._frozen.gradient(probability.to(vectors.dtype))
        return losses, gradient

    def _learnt(self, batch: Batch, labels: Labels, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Of each learnt token (M,): the row of the hidden state before it, itself, and its example's number."""
        rows, targets, owners = [], [], []
        for number, (first, own) in enumerate(zip(batch.first_rows, labels, strict=True)):
            places = np.flatnonzero(own[1:] != IGNORED)
            rows.append(first + places)
            targets.append(own[1:][places])
            owners.append(np.full(len(places), number))
        found = (np.concatenate(parts).astype(np.int64) for parts in (rows, targets, owners))
        first_rows, tokens, numbers = (to_device(part, device) for part in found)
        return first_rows, tokens, numbers


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy (M,) whose gradient is formed along with it: a vector has no other use for its logits."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, targets: Tensor, objective: CausalLM) -> Tensor:
        losses, gradient = objective.cross_entropy(vectors, targets)
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad[:, None].to(gradient.dtype), None, None
