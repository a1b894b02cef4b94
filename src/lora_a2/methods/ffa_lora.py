"""FFA-LoRA: A stays at its seeded start for ever, only B is trained.

Sun, Li, Li, Ding: "Improving LoRA in Privacy-preserving Federated Learning", ICLR 2024,
https://arxiv.org/abs/2403.12313.

Uploads and downloads B; A is derived from the seed at both ends. Exact, since A is shared and frozen.
"""

from lora_a2.methods.base import Method, always

METHOD = Method(
    name="ffa-lora",
    reference="Sun, Li, Li, Ding: Improving LoRA in Privacy-preserving Federated Learning. ICLR 2024. "
    "https://arxiv.org/abs/2403.12313",
    uploads="B",
    downloads="B",
    schedule=always("B"),
    exact=True,
)
