"""FLoRA: stacked factors, merged into the base by everyone, and a new adapter every round.

Wang, Shen, He, Sun, Wang, Lyu, Li: "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank
Adaptations", NeurIPS 2024, https://arxiv.org/abs/2409.05976.

Uploads A and B at the client's own rank. Downloads the stack of the last round, [w_1 s_1 B_1 … w_K s_K B_K] and
[A_1; …; A_K], whose product is Σ w_k s_k B_k A_k: exact. Clients merge it into their base weights and start again from
B = 0 and a new A.

Our choices: where the stack would be larger than the product, the product is sent; a client that missed the last round
receives all that changed since the pre-trained model, dense; the new adapter is drawn by the server and travels too (one
K-th of the stack). The released code aggregates only the first client on its non-stacking path; here there is no such path.
"""

from collections.abc import Sequence
from dataclasses import replace

from lora_a2.core.algebra import restarted, smaller, stacked
from lora_a2.core.randomness import generator
from lora_a2.core.reduce import collect
from lora_a2.core.types import Reply, ServerState, weight_name
from lora_a2.methods.base import Method, Step, always, mean_head, scaled_products, truncate_ranks


def stack(state: ServerState, replies: Sequence[Reply], step: Step) -> ServerState:
    """Σ w_k s_k B_k A_k into the base weights (every client's B was zero at its start), and a new adapter."""
    update = {weight_name(name): smaller(stacked(terms)) for name, terms in scaled_products(replies).items()}
    new = restarted(state.adapter, generator(state.seed, "restart", state.server_round + 1))
    return replace(state, adapter=replace(new, head=mean_head(state, replies)), base_update=update)


METHOD = Method(
    name="flora",
    reference="Wang et al.: FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank Adaptations. "
    "NeurIPS 2024. https://arxiv.org/abs/2409.05976",
    uploads="A and B",
    downloads="all clients' A and B",
    schedule=always("A", "B"),
    dispatch=truncate_ranks,
    restarts=frozenset({"B"}),
    moves_base=True,
    reduce=collect,
    server_step=stack,
    update_rank=lambda clients, server: clients,
    linear=False,
    exact=True,
    mixed_ranks=True,
)
