"""FedProx: a term that keeps clients near what they received.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith: "Federated Optimization in Heterogeneous Networks", MLSys 2020,
https://arxiv.org/abs/1812.06127. The term is μ/2 · ‖θ − θ_received‖², over what is trained (equation 2).
"""

from __future__ import annotations

from lora_a2.errors import ConfigError
from lora_a2.methods.base import Method, Penalty, Values
from lora_a2.settings.options import Float, Options, option


class ProximalOptions(Options):
    """FedProx's."""

    proximal_mu: Float = option(
        0.0,
        "Training",
        "FedProx: add this / 2 times the squared distance from the received values to each client's loss.",
        reach="nodes",
        ge=0,
    )


def proximal_penalty(options: ProximalOptions, method: Method) -> tuple[Penalty, ...]:
    """The penalty of a run; none if μ is 0.

    Raises:
        ConfigError: for a method that trains whole backbones.
    """
    if not options.proximal_mu:
        return ()
    if method.full:
        raise ConfigError("proximal-mu: it is for methods that train an adapter; leave it out.")
    return (proximal(options.proximal_mu),)


def proximal(mu: float) -> Penalty:
    """The penalty for a μ > 0; its gradient is μ · (θ − θ_received)."""

    def value(trained: Values, received: Values) -> object:
        return sum(mu / 2 * ((v - received[key]) ** 2).sum() for key, v in trained.items())

    def gradient(trained: Values, received: Values) -> Values:
        return {key: mu * (v - received[key]) for key, v in trained.items()}

    return Penalty(value, gradient)
