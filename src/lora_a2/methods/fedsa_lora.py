"""FedSA-LoRA: A is shared, B stays on the client.

Guo, Zeng, Wang, Fan, Wang, Qu: "Selective Aggregation for Low-Rank Adaptation in Federated Learning", ICLR 2025,
https://arxiv.org/abs/2410.01463.

Trains both factors; uploads and downloads A. Each client keeps its B from round to round, so its model is A and its own
B: a personal model, evaluated on the client's own examples and reported apart. The server never sees a B; its B stays
zero, and its global model is the pre-trained one. Not exact: Σ w_k B_k A_k needs the B_k. A trained head is shared.
"""

from lora_a2.methods.base import Method, always

METHOD = Method(
    name="fedsa-lora",
    reference="Guo et al.: Selective Aggregation for Low-Rank Adaptation in Federated Learning. ICLR 2025. "
    "https://arxiv.org/abs/2410.01463",
    uploads="A",
    downloads="A",
    schedule=always("A", "B"),
    private=frozenset({"B"}),
)
