"""Fed-SB: a small core is trained and averaged between two frozen factors.

Singhal, Ponkshe et al.: "Fed-SB: A Silver Bullet for Extreme Communication Efficiency and Performance in (Private) Federated
LoRA Fine-Tuning", TMLR 2026, https://arxiv.org/abs/2502.15436; its start is LoRA-SB's, https://arxiv.org/abs/2411.19557.

ΔW = s·B·R·A; only R (r, r) is trained, uploaded and downloaded, so that the mean is exact. In round 1 clients upload the
gradient of the target weights over a few of their examples; the server takes the step that AdamW would take first,
ΔW₀ = −η·sign(G), and its SVD: B = U_r, A = V_rᵀ, R = diag(S_r) / s. All three travel down once.

Our choices: gradients are averaged before the sign is taken, as if the examples lay in one place; 50 examples a client, the
number that LoRA-SB takes in all for arithmetic; η = 1e-3, since runs have no warm-up; means are weighted by examples, where the
released code's are not. A rank above min(d_out, d_in) is padded with zeros, which stay. R learns at the rate of A.
"""

from dataclasses import replace

import numpy as np

from lora_a2.core.reduce import Mean
from lora_a2.core.types import Factors, ServerState, weight_name
from lora_a2.methods.base import Gradients, Method, Schedule, Step

EXAMPLES, STEP = 50, 1e-3


def core_step(state: ServerState, reduced: Mean, step: Step) -> ServerState:
    """The start from the mean gradient in round 1, the server optimizer's step for R in the others."""
    if state.server_round:
        return step(state, reduced)
    adapter, gradients = state.adapter, reduced.update
    changes = {n: -STEP * np.sign(gradients["base", weight_name(n)]) for n in adapter.factors}
    factors = {n: principal(changes[n], f, adapter.scaling) for n, f in adapter.factors.items()}
    return replace(state, adapter=replace(adapter, factors=factors))


def principal(change: np.ndarray, old: Factors, scaling: float) -> Factors:
    """The factors of the shapes of `old` whose product, scaled, is nearest to `change` (d_out, d_in)."""
    u, values, vt = np.linalg.svd(change, full_matrices=False)
    held = min(old.rank, len(values))
    new = Factors(*(np.zeros_like(old.get(x)) for x in old.kinds))
    new.A[:held], new.B[:, :held] = vt[:held], u[:, :held]
    np.fill_diagonal(new.get("R")[:held, :held], values[:held] / scaling)
    return new


METHOD = Method(
    name="fed-sb",
    reference="Singhal, Ponkshe et al.: Fed-SB: A Silver Bullet for Extreme Communication Efficiency and Performance in "
    "(Private) Federated LoRA Fine-Tuning. TMLR 2026. https://arxiv.org/abs/2502.15436",
    uploads="gradients in round 1, then R",
    downloads="B, A and R once, then R",
    schedule=Schedule(period=(frozenset({"R"}),), opening=(frozenset(),)),
    core=True,
    gradients=Gradients(frozenset({1}), EXAMPLES),
    server_step=core_step,
    exact=True,
)
