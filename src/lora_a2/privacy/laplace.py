"""Laplace noise on uploads, as in Table 4 of the LoRA-A² paper.

The table follows APPFL (Ryu, Kim, Kim, Madduri: "APPFL: Open-Source Software Framework for Privacy-Preserving Federated
Learning", 2022, https://arxiv.org/abs/2202.03672): each step's gradient is clipped to the norm C, and each uploaded
value gets Laplace noise of scale 2·C·η / ε.

That makes one step of plain gradient descent ε-differentially private: exchanging an example moves the clipped gradient by at most
2·C in the L1 norm, and the values by 2·C·η. It proves nothing of several steps, nor of AdamW, whose step does not grow
with the gradient, nor of the choice of rank slices. It is here to reproduce the table.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lora_a2.core.algebra import rows
from lora_a2.core.tensors import Key
from lora_a2.core.transforms import Sending, Transform
from lora_a2.core.types import Adapter, FloatArray
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

    def add(self, update: Adapter, sending: Sending) -> Adapter:
        """`update` with noise on every value that travels. η is the learning rate of A and the head, that times the ratio for B.
        Drawn in the adapter's order."""
        rng = sending.rng("noise")

        def noisy(key: Key, values: FloatArray) -> FloatArray:
            kind, name = key
            if kind != "head" and kind not in sending.shared:
                return values
            ratio = sending.learning_rate_ratio if kind == "B" else 1.0
            noise = rng.laplace(0.0, self.scale(sending.learning_rate * ratio), values.shape)
            changed: FloatArray = (values + noise).astype(np.float32)
            if sending.mask is None or kind == "head":
                return changed
            return np.where(rows(sending.mask[name], kind), changed, values)

        return update.with_tensors({key: noisy(key, values) for key, values in update.tensors.items()})

    @property
    def transform(self) -> Transform:
        """The mechanism among a run's transforms."""
        return Transform("laplace", self.add, bounded=False, exact=False, l1_clipping_norm=self.clipping_norm)


def make_noise(options: LaplaceOptions, *, full: bool) -> tuple[Transform, ...]:
    """The noise of a run; none if it is not asked for.

    Raises:
        ConfigError: for a method that trains whole backbones (`full`).
    """
    if options.laplace_epsilon is None:
        return ()
    if full:
        raise ConfigError("laplace-epsilon: it is for methods that train an adapter; leave it out.")
    return (LaplaceNoise(options.laplace_epsilon, options.laplace_clipping_norm).transform,)


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
