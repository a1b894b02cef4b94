"""FedSVD: B is trained, A re-orthogonalised by the server.

Lee, Park, Lee, Wagner, Seong, Bocklet, Lee, Hwang: "FedSVD: Adaptive Orthogonalization for Private Federated Learning
with LoRA", NeurIPS 2025, https://arxiv.org/abs/2505.12805.

Uploads B; downloads both, since A changes. The server averages B, takes the SVD of B·A and sets A = Vᵀ, B = U·Σ: the
product, and so the effective weights, stay what they are, and aggregation is exact. The server's step is linear in the
clients' updates as far as the product goes, but the new factors are not.

Our choice: the SVD goes by QR of the two factors, every round (the paper also tries less often). A has orthonormal rows
from round 2 on; as long as B is zero nothing is changed.
"""

from dataclasses import replace

from lora_a2.core.algebra import factored_svd
from lora_a2.core.optimizers import FIRST, moments
from lora_a2.core.reduce import Mean
from lora_a2.core.types import Factors, ServerState
from lora_a2.methods.base import Method, Step, always


def orthogonal_step(state: ServerState, reduced: Mean, step: Step) -> ServerState:
    """The server's step for B, then the same product from an A with orthonormal rows.

    B' = B·T with T = A·A'ᵀ. An optimizer's moments go along: the first as B does, the second by T's squares.
    """
    new = step(state, reduced)
    factors = {name: _orthogonal(f) if f.B.any() else f for name, f in new.adapter.factors.items()}
    turns = {name: f.A @ factors[name].A.T for name, f in new.adapter.factors.items() if factors[name] is not f}
    extra = {
        (kind, name): values @ (turns[name] if kind.startswith(FIRST) else turns[name] ** 2)
        for (kind, name), values in moments(new.extra, "B").items()
        if name in turns
    }
    return replace(new, adapter=replace(new.adapter, factors=factors), extra=new.extra.replaced(extra))


def _orthogonal(factors: Factors) -> Factors:
    u, values, vt = factored_svd(factors)
    held = len(values)
    A, B = factors.A.copy(), factors.B.copy()  # slices beyond min(d_out, d_in) carry nothing
    A[:held], B[:, :held], B[:, held:] = vt, u * values, 0
    return Factors(A=A, B=B)


METHOD = Method(
    name="fedsvd",
    reference="Lee et al.: FedSVD: Adaptive Orthogonalization for Private Federated Learning with LoRA. NeurIPS 2025. "
    "https://arxiv.org/abs/2505.12805",
    uploads="B",
    downloads="A and B",
    schedule=always("B"),
    server_moves=frozenset({"A"}),
    server_step=orthogonal_step,
    exact=True,
)
