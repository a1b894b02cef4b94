"""FlexLoRA: the mean of the products, split anew for each client's rank.

Bai, Chen, Qian, Yao, Li: "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client
Resources", NeurIPS 2024, https://arxiv.org/abs/2402.11505.

Uploads and downloads A and B at the client's own rank. The server forms ΔW = Σ w_k s_k B_k A_k, takes its SVD and sends
client k the first r_k singular triples. Not exact: what lies beyond the server's rank is lost; it is the best
approximation of that rank.

As in the paper: B = U·Σ, A = Vᵀ. Our choices: the SVD goes by QR of the stacked factors and a core of Σ r_k rows, which is
exact and converges where the SVD of the full ΔW does not; all clients share the server's scaling lora_alpha / r; where
the clients together have fewer ranks than the server, new slices start as LoRA does (A Gaussian, B zero), since a slice
that is zero in both factors would never learn.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lora_a2.core.algebra import factored_svd, restarted, stacked
from lora_a2.core.randomness import generator
from lora_a2.core.reduce import collect
from lora_a2.core.types import Factors, Reply, ServerState
from lora_a2.methods.base import Method, Step, always, mean_head, scaled_products, truncate_ranks


def split_mean(state: ServerState, replies: Sequence[Reply], step: Step) -> ServerState:
    """The best factors of the server's rank for Σ w_k s_k B_k A_k."""
    old = state.adapter
    spare = restarted(old, generator(state.seed, "spare ranks", state.server_round + 1))
    factors = {}
    for name, terms in scaled_products(replies).items():
        u, values, vt = factored_svd(stacked(terms))
        held = min(len(values), old.rank)
        A, B = spare.factors[name].A.copy(), spare.factors[name].B.copy()
        A[:held] = vt[:held]
        B[:, :held] = u[:, :held] * (values[:held] / np.float32(old.scaling))
        factors[name] = Factors(A=A, B=B)
    return replace(state, adapter=replace(old, factors=factors, head=mean_head(state, replies)))


METHOD = Method(
    name="flexlora",
    reference="Bai et al.: Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client "
    "Resources. NeurIPS 2024. https://arxiv.org/abs/2402.11505",
    uploads="A and B",
    downloads="A and B",
    schedule=always("A", "B"),
    dispatch=truncate_ranks,
    reduce=collect,
    server_step=split_mean,
    linear=False,
    mixed_ranks=True,
)
