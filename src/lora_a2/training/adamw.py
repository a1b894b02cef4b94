"""AdamW on one flat buffer for a whole cohort."""

from __future__ import annotations

import torch
from torch import Tensor


class AdamW:
    """Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019; as `torch.optim.AdamW`.

    Steps the first K' of K clients' rows; since clients leave from the end and never come back, the number of steps
    that a present client has taken is the number of calls.

    Args:
        values: (K, P) float32, changed in place.
        rates: (1, P) or (K, P) float32 learning rates; a value whose rate is zero does not move.
        weight_decay: decoupled; multiplied by the rate.
    """

    def __init__(
        self, values: Tensor, rates: Tensor, weight_decay: float, betas: tuple[float, float] = (0.9, 0.999)
    ) -> None:
        self.values = values
        self.rates = rates
        self.decay = 1 - rates * weight_decay
        self.betas = betas
        self.mean = torch.zeros_like(values)
        self.square = torch.zeros_like(values)
        self.steps = 0

    def step(self, gradient: Tensor, eps: float = 1e-8) -> None:
        """One update of the first K' clients from their gradient (K', P)."""
        self.steps += 1
        active = gradient.shape[0]
        mean, square, values = self.mean[:active], self.square[:active], self.values[:active]
        beta1, beta2 = self.betas
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = square.sqrt().div_((1 - beta2**self.steps) ** 0.5).add_(eps)
        values.mul_(self.decay[:active]).sub_(
            mean.div(root).mul_(self.rates[:active]), alpha=1 / (1 - beta1**self.steps)
        )
