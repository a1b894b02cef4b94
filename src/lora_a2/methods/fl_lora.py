"""FL + LoRA (FedIT): A and B are averaged separately.

Zhang, Vahidian, Kuo, Li, Zhang, Yu, Zhou, Chen: "Towards Building the Federated GPT: Federated Instruction Tuning",
ICASSP 2024, https://arxiv.org/abs/2305.05644.

Uploads and downloads both factors. Not exact: Σ w_k B_k A_k ≠ (Σ w_k B_k)(Σ w_k A_k).
"""

from lora_a2.methods.base import Method, always

METHOD = Method(
    name="fl-lora",
    reference="Zhang et al.: Towards Building the Federated GPT: Federated Instruction Tuning. ICASSP 2024. "
    "https://arxiv.org/abs/2305.05644",
    uploads="A and B",
    downloads="A and B",
    schedule=always("A", "B"),
)
