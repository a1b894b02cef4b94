"""FedRot-LoRA: FedIT, whose clients turn their factors towards the last global ones before they send them.

Zhang, Kim, Cha, Vikalo: "FedRot-LoRA: Mitigating Rotational Misalignment in Federated LoRA", ICML 2026,
https://arxiv.org/abs/2602.23638.

Trains, uploads and downloads A and B. A product B·A is the same for every rotation R of B·R and Rᵀ·A, and averaging factors
that are rotated differently loses what they agree on. Counting rounds from 0, odd ones align A, even ones B, round 0
nothing: with U Σ Vᵀ the SVD of A_k·Aᵀ, or of B_kᵀ·B, the nearest rotation is R* = U·diag(1, …, 1, det(U Vᵀ))·Vᵀ, and the
client takes the rotation nearest to (1 − λ)·I + λ·R*. The product stays; not exact, with a smaller error than FedIT's.

Our choices: λ = 0.5, the middle of the range that the paper finds best; AdamW on clients where the paper has SGD; where the sum
has no unique nearest rotation (R* turns by half a circle) R* itself. SVDs in float64. The released default, λ = 1.5, takes
a path that allows reflections, which ours never makes.
"""

from dataclasses import replace

import numpy as np

from lora_a2.core.algebra import nearest_rotation, turned
from lora_a2.core.types import Adapter, Factors
from lora_a2.methods.base import Finished, Method, always

STRENGTH = 0.5


def align(start: Adapter, trained: Adapter, server_round: int) -> Finished:
    """The same products from factors turned towards the received ones."""
    if server_round == 1:
        return Finished(trained)
    factors = {n: _aligned(f, start.factors[n], server_round) for n, f in trained.factors.items()}
    return Finished(replace(trained, factors=factors))


def _aligned(own: Factors, reference: Factors, server_round: int) -> Factors:
    full = nearest_rotation(own.A @ reference.A.T if server_round % 2 == 0 else own.B.T @ reference.B)
    soft = (1 - STRENGTH) * np.eye(len(full)) + STRENGTH * full
    return turned(own, nearest_rotation(soft) if np.linalg.svd(soft, compute_uv=False)[-1] > 1e-6 else full)


METHOD = Method(
    name="fedrot-lora",
    reference="Zhang, Kim, Cha, Vikalo: FedRot-LoRA: Mitigating Rotational Misalignment in Federated LoRA. ICML 2026. "
    "https://arxiv.org/abs/2602.23638",
    uploads="A and B, aligned",
    downloads="A and B",
    schedule=always("A", "B"),
    finish=align,
    rotates=True,
)
