"""LoRA-A²: alternating freeze and adaptive rank selection.

Koo, Jang, Ok: "Towards Robust and Efficient Federated Low-Rank Adaptation with Heterogeneous Clients",
ACL 2025, https://arxiv.org/abs/2410.22815.

Uploads the selected rank slices of the round's factor; downloads those of both factors that changed. Odd rounds train B, even rounds A, so
that Σ w_k B_k A = (Σ w_k B_k) A and aggregation is exact. Each client ranks all r·N slices of the model by their
contribution to the change of ΔW and uploads the best r_k·N. η_B = 5·η_A.

Its options are for the paper's ablations (Figure 6, Table 9): another criterion, and no alternation, which freezes A for ever
as FFA-LoRA does. The learning rate ratio is an option of every run.
"""

from lora_a2.core.options import Option
from lora_a2.core.selection import CRITERIA, select_top
from lora_a2.methods.base import Method, alternate, always

OPTIONS = (
    Option(
        "criterion",
        "contribution",
        "What ranks are selected by, for methods that select them.",
        choices=tuple(CRITERIA),
    ),
    Option("alternating", True, "Whether B and A take turns, for methods with this switch; off, A is frozen."),
)


def lora_a2(criterion: str = "contribution", alternating: bool = True) -> Method:
    """The method with the given options; `criterion` is a key of `CRITERIA`."""
    return Method(
        name="lora-a2",
        reference="Koo, Jang, Ok: Towards Robust and Efficient Federated Low-Rank Adaptation with Heterogeneous "
        "Clients. ACL 2025. https://arxiv.org/abs/2410.22815",
        uploads="selected slices of B, then A" if alternating else "selected slices of B",
        downloads="A and B" if alternating else "B",
        schedule=alternate("B", "A") if alternating else always("B"),
        select=select_top(CRITERIA[criterion]),
        learning_rate_ratio=5.0,
        exact=True,
        mixed_ranks=True,
        options=OPTIONS,
        variant=lora_a2,
    )


METHOD = lora_a2()
