"""RoLoRA: B and A in turns, all ranks.

Chen, Guo, Ju, Dalal, Zhu, Khisti: "Robust Federated Finetuning of LLMs via Alternating Optimization of LoRA",
NeurIPS 2025, https://arxiv.org/abs/2502.01755.

Uploads the round's factor; downloads both. Exact, since the other factor is shared and frozen during the round. The paper
starts with B (its down-projection, written the other way round), since B starts at zero; so do we.
"""

from lora_a2.methods.base import Method, alternate

METHOD = Method(
    name="rolora",
    reference="Chen et al.: Robust Federated Finetuning of LLMs via Alternating Optimization of LoRA. NeurIPS 2025. "
    "https://arxiv.org/abs/2502.01755",
    uploads="B, then A",
    downloads="A and B",
    schedule=alternate("B", "A"),
    exact=True,
)
