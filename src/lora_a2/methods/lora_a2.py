"""LoRA-A²: alternating freeze and adaptive rank selection.

Koo, Jang, Ok: "Towards Robust and Efficient Federated Low-Rank Adaptation with Heterogeneous Clients",
ACL 2025, https://arxiv.org/abs/2410.22815.

Uploads the selected rank slices of the round's factor; downloads both factors. Odd rounds train B, even rounds A, so
that Σ w_k B_k A = (Σ w_k B_k) A and aggregation is exact. Each client ranks all r·N slices of the model by their
contribution to the change of ΔW and uploads the best r_k·N. η_B = 5·η_A.
"""

from lora_a2.method import Method, alternate
from lora_a2.selection import contribution, select_top

METHOD = Method(
    name="lora-a2",
    reference="Koo, Jang, Ok: Towards Robust and Efficient Federated Low-Rank Adaptation with Heterogeneous "
    "Clients. ACL 2025. https://arxiv.org/abs/2410.22815",
    trainable=alternate("B", "A"),
    select=select_top(contribution),
    learning_rate_ratio=5.0,
    exact=True,
    mixed_ranks=True,
)
