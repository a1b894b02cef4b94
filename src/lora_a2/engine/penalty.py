"""The gradient of penalties: in closed form where a penalty gives it, else by autograd."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lora_a2.core.tensors import Key
from lora_a2.engine.parameters import CohortParameters
from lora_a2.methods.base import Penalty


def add_gradients(
    gradient: Tensor, parameters: CohortParameters, start: Tensor, penalties: Sequence[Penalty], active: int
) -> None:
    """Adds the penalties' gradient to `gradient` (K', P), client by client; `start` (K, P) holds the received values."""
    rows = zip(
        parameters.clients(parameters.values, active),
        parameters.clients(start, active),
        parameters.clients(gradient, active),
        strict=True,
    )
    for (_, trained), (_, received), (_, target) in rows:
        for penalty in penalties:
            for key, value in penalty_gradient(penalty, trained, received).items():
                target[key] += value


def penalty_gradient(
    penalty: Penalty, trained: Mapping[Key, Tensor], received: Mapping[Key, Tensor]
) -> Mapping[Key, Tensor]:
    """The gradient of one client's penalty by its trained values."""
    if penalty.gradient is not None:
        return penalty.gradient(trained, received)
    leaves = {key: value.detach().clone().requires_grad_() for key, value in trained.items()}
    value = penalty.value(leaves, received)
    if not isinstance(value, Tensor) or not value.requires_grad:
        return {}  # nothing of what is trained is in it
    found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    return {key: g for key, g in zip(leaves, found, strict=True) if g is not None}
