"""HetLoRA: zero-padding, sparsity-weighted aggregation, rank self-pruning.

Cho, Liu, Xu, Fahrezi, Joshi: "Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models", EMNLP 2024,
https://arxiv.org/abs/2401.06432.

Uploads and downloads A and B at the client's own rank. Not exact: A and B are averaged separately, and the weights are
the norms of the clients' products, not their examples.

As in the paper: client k receives the first r_k slices; its loss has the term λ‖B[:, ⌊γr_k⌋:]‖·‖A[⌊γr_k⌋:]‖; where that
tail is smaller after training than before, the client drops it and holds ⌊γr_k⌋ ranks from then on; the server pads with
zeros and weighs by ‖B_k A_k‖_F. Our choices: γ = 0.99 (the LoRA-A² paper's), λ = 1e-3; one decision and one weight a
client, over all modules together; nobody falls below rank 1; slices that nobody in a cohort holds stay as they
are; all clients share the server's scaling; with three clients or more, a norm counts for at most three times the second
largest, so that one client's word does not weigh more than all others'. A pruned client tells by its upload's mask.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lora_a2.core.reduce import collect, example_weights
from lora_a2.core.types import Adapter, Factors, Reply, ServerState
from lora_a2.methods.base import (
    Finished,
    Method,
    Penalty,
    Step,
    Values,
    always,
    mean_head,
    require_prefix,
    trained_adapter,
    truncate_ranks,
)

TINY = float(np.finfo(np.float32).tiny)
LARGEST_NORM = 3.0
"""A norm counts for at most this many times the second largest."""
WEIGHT, DECAY = 1e-3, 0.99
"""λ and γ."""


def kept(rank: int) -> int:
    """How many of `rank` slices come before the tail, ⌊γr⌋; at least one."""
    return max(1, int(DECAY * rank))


def norms_of(trained: Values) -> dict[str, dict[str, Any]]:
    """Module → factor → norm of its tail; the values are of PyTorch or NumPy."""
    found: dict[str, dict[str, Any]] = {}
    for (kind, name), values in trained.items():
        if kind != "head":
            tail_rows = values[kept(len(values)) :]
            found.setdefault(name, {})[kind] = (tail_rows * tail_rows).sum() ** 0.5
    return found


def tail_term(trained: Values, received: Values) -> Any:
    """λ Σ_modules ‖B[:, t:]‖ · ‖A[t:]‖."""
    return sum(WEIGHT * norms["A"] * norms["B"] for norms in norms_of(trained).values())


def tail_gradient(trained: Values, received: Values) -> Values:
    """∂/∂B = λ · ‖A_t‖ · B_t / ‖B_t‖ in the tail and likewise for A; zero if a norm is zero."""
    gradients = {}
    for (kind, name), values in trained.items():
        gradient = 0 * values
        if kind != "head":
            first = kept(len(values))
            norms = {x: trained[x, name][first:].norm() for x in ("A", "B")}
            direction = values[first:] / norms[kind].clamp_min(TINY)
            gradient[first:] = WEIGHT * norms["B" if kind == "A" else "A"] * direction
        gradients[kind, name] = gradient
    return gradients


def tail(adapter: Adapter) -> float:
    """Σ_modules ‖B[:, t:]‖_F · ‖A[t:]‖_F with t = ⌊γr⌋: what self-pruning watches."""
    first = kept(adapter.rank)
    return float(sum(np.linalg.norm(f.B[:, first:]) * np.linalg.norm(f.A[first:]) for f in adapter.factors.values()))


def prune_tail(start: Adapter, trained: Adapter, server_round: int) -> Finished:
    """Drops the tail where training has made it smaller."""
    if not tail(trained) < tail(start):
        return Finished(trained)
    return Finished(trained, {name: np.arange(start.rank) < kept(start.rank) for name in start.factors})


def product_norm(adapter: Adapter) -> float:
    """√ Σ_modules ‖B A‖²_F, by ‖B A‖²_F = ⟨BᵀB, AAᵀ⟩."""
    squares = (np.sum((f.B.T @ f.B) * (f.A @ f.A.T), dtype=np.float64) for f in adapter.factors.values())
    return float(np.sqrt(max(0.0, sum(squares))))


def counted_norms(norms: Sequence[float]) -> list[float]:
    """The norms by which clients weigh: as they are, but for one that is out of all proportion to the others."""
    if len(norms) < 3:
        return list(norms)
    most = LARGEST_NORM * sorted(norms)[-2]
    return [min(norm, most) for norm in norms] if most > 0 else list(norms)


def padded_mean(state: ServerState, replies: Sequence[Reply], step: Step) -> ServerState:
    """Σ p_k · zero-padded factors with p_k ∝ ‖B_k A_k‖_F, and the ranks that clients hold from now on."""
    examples = example_weights(replies)
    ranks = {r.profile.id: r.download.adapter.rank for r in replies}
    ranks |= {r.profile.id: int(next(iter(r.upload.mask.values())).sum()) for r in replies if r.upload.mask}
    trained = [trained_adapter(r) for r in replies]
    norms = counted_norms([product_norm(a) for a in trained])
    weights = [n / sum(norms) for n in norms] if sum(norms) > 0 else examples
    factors = {}
    for name, old in state.adapter.factors.items():
        A, B = old.A.astype(np.float64), old.B.astype(np.float64)
        held = max(ranks[r.profile.id] for r in replies)
        A[:held], B[:, :held] = 0, 0
        for weight, reply, adapter in zip(weights, replies, trained, strict=True):
            rank, f = ranks[reply.profile.id], adapter.factors[name]
            A[:rank] += weight * f.A[:rank]
            B[:, :rank] += weight * f.B[:, :rank]
        factors[name] = Factors(A=A.astype(np.float32), B=B.astype(np.float32))
    adapter = replace(state.adapter, factors=factors, head=mean_head(state, replies))
    return replace(state, adapter=adapter, client_ranks={**state.client_ranks, **ranks})


METHOD = Method(
    name="hetlora",
    reference="Cho et al.: Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models. EMNLP 2024. "
    "https://arxiv.org/abs/2401.06432",
    uploads="A and B",
    downloads="A and B",
    schedule=always("A", "B"),
    finish=prune_tail,
    penalties=(Penalty(tail_term, tail_gradient),),
    dispatch=truncate_ranks,
    accepts=require_prefix,
    reduce=collect,
    server_step=padded_mean,
    linear=False,
    mixed_ranks=True,
)
