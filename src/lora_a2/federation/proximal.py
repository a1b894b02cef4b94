"""FedProx: a term that keeps clients near what they received.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith: "Federated Optimization in Heterogeneous Networks", MLSys 2020,
https://arxiv.org/abs/1812.06127. The term is μ/2 · ‖θ − θ_received‖², over what is trained (equation 2).
"""

from __future__ import annotations

from lora_a2.methods.base import Penalty, Values


def proximal(mu: float) -> Penalty:
    """The penalty for a μ > 0; its gradient is μ · (θ − θ_received)."""

    def value(trained: Values, received: Values) -> object:
        return sum(mu / 2 * ((v - received[key]) ** 2).sum() for key, v in trained.items())

    def gradient(trained: Values, received: Values) -> Values:
        return {key: mu * (v - received[key]) for key, v in trained.items()}

    return Penalty(value, gradient)
