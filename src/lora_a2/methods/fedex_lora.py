"""FedEx-LoRA: FedIT, and the residual of its aggregation into the base weights.

Singhal, Ponkshe, Vepakomma: "FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning of Large Language
Models", ACL 2025, https://arxiv.org/abs/2410.09432.

Uploads A and B; downloads their means Ā and B̄ and the residual s·(Σ w_k B_k A_k − B̄ Ā), which clients add to their base
weights: exact. The released code transposes the residual, which square layers hide.

Our choices: the residual, of rank (K+1)·r at most, travels as factors where these are smaller than the difference itself;
a client that missed the last round receives all residuals so far, dense.
"""

from collections.abc import Sequence
from dataclasses import replace

from lora_a2.core.algebra import smaller, stacked
from lora_a2.core.reduce import collect, mean
from lora_a2.core.types import Reply, ServerState, weight_name
from lora_a2.methods.base import Method, Step, always, scaled_products


def mean_and_residual(state: ServerState, replies: Sequence[Reply], step: Step) -> ServerState:
    """The means of A and of B, and in `base_update` what their product lacks."""
    new = step(state, mean(state, replies))
    update = {
        weight_name(name): smaller(stacked([*terms, (-new.adapter.scaling, new.adapter.factors[name])]))
        for name, terms in scaled_products(replies).items()
    }
    return replace(new, base_update=update)


METHOD = Method(
    name="fedex-lora",
    reference="Singhal, Ponkshe, Vepakomma: FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning of "
    "Large Language Models. ACL 2025. https://arxiv.org/abs/2410.09432",
    uploads="A and B",
    downloads="A, B and the residual",
    schedule=always("A", "B"),
    moves_base=True,
    reduce=collect,
    server_step=mean_and_residual,
    update_rank=lambda clients, server: clients + server,
    linear=False,
    exact=True,
)
