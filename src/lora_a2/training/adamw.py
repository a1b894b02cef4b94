"""AdamW on one flat buffer for a whole cohort."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lora_a2.model.transfer import to_device


class AdamW:
    """Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019; as `torch.optim.AdamW`.

    Steps the first K' of K clients' rows and counts each client's steps.

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
        self.steps = np.zeros(len(values), np.int64)

    def step(self, gradient: Tensor, eps: float = 1e-8) -> None:
        """One update of the first K' clients from their gradient (K', P)."""
        active = gradient.shape[0]
        self.steps[:active] += 1
        first, second = (self._correction(beta, active) for beta in self.betas)
        mean, square, values = self.mean[:active], self.square[:active], self.values[:active]
        beta1, beta2 = self.betas
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = square.sqrt().div_(second**0.5).add_(eps)
        rates = self.rates[:active]
        if isinstance(first, Tensor):
            rates, first = rates / first, 1.0
        values.mul_(self.decay[:active]).sub_(mean.div(root).mul_(rates), alpha=1 / first)

    def _correction(self, beta: float, active: int) -> float | Tensor:
        """1 − βᵗ for the t steps that a client has taken: a number where all have taken as many, else (K', 1)."""
        steps = self.steps[:active]
        if (steps == steps[0]).all():
            return float(1 - beta ** int(steps[0]))
        values: Tensor = to_device((1 - beta**steps).astype(np.float32), self.values.device)
        return values[:, None]
