"""AdamW on one flat buffer for a whole cohort."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.optim.adamw import adamw

from lora_a2.core.types import FloatArray

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8


@dataclass(frozen=True)
class _Piece:
    """A stretch of a client's row that has one learning rate, with its state; PyTorch's kernel takes many at once."""

    client: int
    span: slice
    values: Tensor
    mean: Tensor
    square: Tensor
    step: Tensor


class AdamW:
    """Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019; PyTorch's fused kernel on views of the buffer.

    Steps some of the K clients' rows and counts each client's steps.

    Args:
        values: (K, P) float32, changed in place.
        rates: (1, P) or (K, P) learning rates; a value whose rate is zero does not move.
        weight_decay: decoupled; multiplied by the rate.
    """

    def __init__(self, values: Tensor, rates: FloatArray, weight_decay: float) -> None:
        self.values, self.weight_decay = values, weight_decay
        self.mean = torch.zeros_like(values)
        self.square = torch.zeros_like(values)
        self._pieces: dict[float, list[_Piece]] = {}
        for k in range(len(values)):
            for span, rate in _stretches(rates[min(k, len(rates) - 1)]):
                row, mean, square = (buffer[k, span] for buffer in (values, self.mean, self.square))
                piece = _Piece(k, span, row, mean, square, torch.zeros((), device=values.device))
                self._pieces.setdefault(rate, []).append(piece)

    def step(self, gradient: Tensor, clients: Collection[int] | None = None) -> None:
        """One update from the gradient (K', P) of the first K' clients: of all of these, or of `clients` among them."""
        active = range(gradient.shape[0]) if clients is None else frozenset(clients)
        for rate, pieces in self._pieces.items():
            moved = [piece for piece in pieces if piece.client in active]
            if not moved:
                continue
            adamw(
                [piece.values for piece in moved],
                [gradient[piece.client, piece.span] for piece in moved],
                [piece.mean for piece in moved],
                [piece.square for piece in moved],
                [],
                [piece.step for piece in moved],
                fused=True,
                amsgrad=False,
                beta1=_BETA1,
                beta2=_BETA2,
                lr=rate,
                weight_decay=self.weight_decay,
                eps=_EPSILON,
                maximize=False,
            )

    def count_from(self, other: AdamW) -> None:
        """Takes over how many steps each client has made."""
        counts = {piece.client: piece.step for pieces in other._pieces.values() for piece in pieces}
        for pieces in self._pieces.values():
            for piece in pieces:
                piece.step.copy_(counts[piece.client])


def _stretches(rates: FloatArray) -> Iterator[tuple[slice, float]]:
    """The stretches of equal learning rate of a row (P,), without those at zero."""
    cuts = [0, *(np.flatnonzero(np.diff(rates)) + 1).tolist(), len(rates)]
    for start, end in pairwise(cuts):
        if end > start and rates[start] > 0:
            yield slice(start, end), float(rates[start])
