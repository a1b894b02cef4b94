"""Laplace noise on uploads, as in Table 4 of the LoRA-A² paper.

The table follows APPFL (Ryu, Kim, Kim, Madduri: "APPFL: Open-Source Software Framework for Privacy-Preserving Federated
Learning", 2022, https://arxiv.org/abs/2202.03672): each step's gradient is clipped to the norm C, and each uploaded
value gets Laplace noise of scale 2·C·η / ε.

That makes one step of plain gradient descent ε-differentially private: exchanging an example moves the clipped gradient by at most
2·C in the L1 norm, and the values by 2·C·η. It proves nothing of several steps, nor of AdamW, whose step does not grow
with the gradient, nor of the choice of rank slices. It is here to reproduce the table.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from lora_a2.core.types import Adapter, Factor, Factors, FloatArray, Mask
from lora_a2.errors import ConfigError
from lora_a2.settings.options import Effect, Float, Options, option

DEFAULT_CLIPPING_NORM = 2.0
"""The smaller of the paper's two."""


class LaplaceOptions(Options):
    """Whether there is noise, and how much. A Flower app has no keys for it: noise from a shared seed hides nothing there."""

    laplace_epsilon: Float | None = option(
        None,
        "Method",
        "Add Laplace noise of scale 2 · laplace-clipping-norm · learning rate / this to uploads, to reproduce Table 4 of the "
        "paper; no proof of privacy. In simulations only.",
        app=False,
        gt=0,
    )
    laplace_clipping_norm: Float = option(
        DEFAULT_CLIPPING_NORM,
        "Method",
        "L1 norm to which gradients are clipped with laplace-epsilon.",
        app=False,
        effect=Effect(lambda c: c.laplace_epsilon is not None, "--laplace-epsilon"),
        gt=0,
    )


@dataclass(frozen=True)
class LaplaceNoise:
    """The mechanism: ε > 0 of a round, and the L1 norm C > 0 to which the gradient of each step is clipped."""

    epsilon: float
    clipping_norm: float = DEFAULT_CLIPPING_NORM

    def scale(self, learning_rate: float) -> float:
        """2·C·η / ε, the scale of the noise (mean of its absolute value) on what is trained at the rate η."""
        return 2 * self.clipping_norm * learning_rate / self.epsilon

    def add(
        self,
        update: Adapter,
        uploaded: frozenset[Factor],
        mask: Mask | None,
        learning_rate: float,
        learning_rate_ratio: float,
        rng: np.random.Generator,
    ) -> Adapter:
        """`update` with noise on every value that travels: the `uploaded` factors in the rank slices of `mask` (None: all),
        and a trained head. η is `learning_rate` for A and the head, that times the ratio for B. Drawn in the adapter's order."""

        def noisy(values: FloatArray, rate: float) -> FloatArray:
            noise = rng.laplace(0.0, self.scale(rate), values.shape)
            return (values + noise).astype(np.float32)

        def factor(name: str, which: Factor) -> FloatArray:
            values = update.factors[name].get(which)
            if which not in uploaded:
                return values
            changed = noisy(values, learning_rate * (learning_rate_ratio if which == "B" else 1.0))
            if mask is None:
                return changed
            return np.where(mask[name][:, None] if which == "A" else mask[name], changed, values)

        factors = {name: Factors(A=factor(name, "A"), B=factor(name, "B")) for name in update.factors}
        head = {name: noisy(values, learning_rate) for name, values in update.head.items()}
        return replace(update, factors=factors, head=head)


def make_noise(options: LaplaceOptions, *, full: bool) -> LaplaceNoise | None:
    """The noise of a run; None where none is asked for.

    Raises:
        ConfigError: for a method that trains whole backbones (`full`).
    """
    if options.laplace_epsilon is None:
        return None
    if full:
        raise ConfigError("laplace-epsilon: it is for methods that train an adapter; leave it out.")
    return LaplaceNoise(options.laplace_epsilon, options.laplace_clipping_norm)


def refuse_noise(options: LaplaceOptions) -> None:
    """For drivers with real nodes.

    Raises:
        ConfigError: noise is asked for.
    """
    if options.laplace_epsilon is not None:
        raise ConfigError(
            "laplace-epsilon: this noise is drawn from the run's seed, which the server knows, so that on a node it would hide "
            "nothing; use it in simulations, with 'lora-a2 run'."
        )
