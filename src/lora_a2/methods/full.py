"""FL without LoRA: FedAvg on all weights of the backbone, the reference for cost and accuracy.

McMahan, Moore, Ramage, Hampson, Agüera y Arcas: "Communication-Efficient Learning of Deep Networks from Decentralized
Data", AISTATS 2017, https://arxiv.org/abs/1602.05629.

Uploads a difference for every weight; downloads what changed since the client's last round, every weight too. In round 1
nothing, since everyone has the pre-trained model. Exact and linear. The head is trained only with `--head trained`, as
for the other methods. By default at a tenth of an adapter's learning rate. There is no adapter: A and B stay at their start, B zero, and never travel.
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from lora_a2.core.algebra import dense
from lora_a2.core.types import Reply, ServerState
from lora_a2.errors import ReplyError
from lora_a2.methods.base import Method, always, weighted_mean


def average(state: ServerState, replies: Iterable[Reply]) -> ServerState:
    """W ← W + Σ w_k ΔW_k, weight by weight, in float64 and one reply at a time; the head likewise."""
    sums: dict[str, np.ndarray] = {}
    total = 0

    def added() -> Iterable[Reply]:
        nonlocal total
        for reply in replies:
            examples = reply.upload.num_examples
            total += examples
            for name, change in reply.upload.base_update.items():
                values = np.float64(examples) * dense(change)
                sums[name] = sums[name] + values if name in sums else values
            yield reply

    new = weighted_mean(state, added())
    if not sums:
        raise ReplyError("No reply held any weights: the round had no usable reply.")
    return replace(new, base_update={name: (values / total).astype(np.float32) for name, values in sums.items()})


METHOD = Method(
    name="full",
    reference="McMahan et al.: Communication-Efficient Learning of Deep Networks from Decentralized Data. AISTATS 2017. "
    "https://arxiv.org/abs/1602.05629",
    uploads="all weights",
    downloads="all weights",
    trainable=always(),
    aggregate=average,
    full=True,
    learning_rate_scale=0.1,
    exact=True,
)
