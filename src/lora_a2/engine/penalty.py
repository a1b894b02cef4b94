"""The gradient of `TailPenalty`, in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from lora_a2.engine.parameters import CohortParameters
from lora_a2.methods.base import TailPenalty


def tail_gradient(parameters: CohortParameters, penalty: TailPenalty, active: int) -> Tensor:
    """(K', P) float32: ∂/∂B = weight · ‖A_t‖ · B_t / ‖B_t‖ in the tail and likewise for A; zero where a norm is zero.

    Expects both factors trained and no masks, so that every client's slices stand in the buffer in their own order.
    """
    values = parameters.values[:active]
    gradient = torch.zeros_like(values)
    segments = {(s.kind, s.name): s for s in parameters.segments}
    for k in range(active):
        kept = penalty.kept(parameters.tasks[k].start.rank)
        for name in parameters.modules:
            tails = {x: segments[x, name].view(values)[k, kept:] for x in ("A", "B")}
            norms = {x: tail.norm() for x, tail in tails.items()}
            for x, other in (("A", "B"), ("B", "A")):
                direction = tails[x] / norms[x].clamp_min(torch.finfo(torch.float32).tiny)
                segments[x, name].view(gradient)[k, kept:] = penalty.weight * norms[other] * direction
    return gradient
