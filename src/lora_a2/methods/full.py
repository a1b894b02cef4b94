"""FL without LoRA: FedAvg on all weights of the backbone, the reference for cost and accuracy.

McMahan, Moore, Ramage, Hampson, Agüera y Arcas: "Communication-Efficient Learning of Deep Networks from Decentralized
Data", AISTATS 2017, https://arxiv.org/abs/1602.05629.

Uploads a difference for every weight; downloads what changed since the client's last round, every weight too. In round 1
nothing, since everyone has the pre-trained model. Exact and linear. The head is trained only with `--head trained`, as
for the other methods. By default at a tenth of an adapter's learning rate. There is no adapter: A and B stay at their start, B zero, and never travel.
"""

from lora_a2.methods.base import Method, always

METHOD = Method(
    name="full",
    reference="McMahan et al.: Communication-Efficient Learning of Deep Networks from Decentralized Data. AISTATS 2017. "
    "https://arxiv.org/abs/1602.05629",
    uploads="all weights",
    downloads="all weights",
    schedule=always(),
    moves_base=True,
    full=True,
    learning_rate_scale=0.1,
    exact=True,
)
