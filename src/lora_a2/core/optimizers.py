"""Server optimizers: how the mean of a round's updates moves the server's values. NumPy only.

Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan: "Adaptive Federated Optimization", ICLR 2021,
https://arxiv.org/abs/2003.00295 (FedAdam, FedYogi: Algorithm 2, without bias correction, v starting at τ²); Hsu, Qi, Brown:
"Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification", 2019,
https://arxiv.org/abs/1909.06335 (FedAvgM).

Our choice: moments advance, and values move, only if somebody uploaded in the round, so that masks and alternation stay
what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from lora_a2.core.reduce import Mean
from lora_a2.core.tensors import Array, Key, Tensors
from lora_a2.core.types import ServerState

FIRST, SECOND = "momentum:", "variance:"
"""What the kinds of an optimizer's moments in `ServerState.extra` begin with."""


@dataclass(frozen=True)
class Rates:
    """The numbers of a server optimizer: η, β₁, β₂, τ."""

    learning_rate: float = 1.0
    momentum: float = 0.9
    second_momentum: float = 0.99
    epsilon: float = 1e-3


Step = tuple[Array, Array | None, Array | None]
"""The values' change, and the first and second moment after it; all float64."""
Rule = Callable[[Array, Array, Array, Rates], Step]
"""(Δ, first moment, second moment, rates) → step. Moments that an optimizer does not keep are zero."""


def sgd(update: Array, first: Array, second: Array, rates: Rates) -> Step:
    """η · Δ."""
    return (update if rates.learning_rate == 1 else rates.learning_rate * update), None, None


def momentum(update: Array, first: Array, second: Array, rates: Rates) -> Step:
    """m ← β₁ m + Δ; η · m (FedAvgM)."""
    first = rates.momentum * first + update
    return rates.learning_rate * first, first, None


def adam(update: Array, first: Array, second: Array, rates: Rates) -> Step:
    """m ← β₁ m + (1 − β₁) Δ, v ← β₂ v + (1 − β₂) Δ²; η · m / (√v + τ) (FedAdam)."""
    return _adaptive(update, first, rates.second_momentum * second + (1 - rates.second_momentum) * update**2, rates)


def yogi(update: Array, first: Array, second: Array, rates: Rates) -> Step:
    """As `adam`, with v ← v − (1 − β₂) Δ² sign(v − Δ²) (FedYogi)."""
    square = update**2
    return _adaptive(update, first, second - (1 - rates.second_momentum) * square * np.sign(second - square), rates)


def _adaptive(update: Array, first: Array, second: Array, rates: Rates) -> Step:
    first = rates.momentum * first + (1 - rates.momentum) * update
    return rates.learning_rate * first / (np.sqrt(second) + rates.epsilon), first, second


@dataclass(frozen=True)
class Kind:
    """A row of `OPTIMIZERS`: the rule, and the learning rate if none is given."""

    rule: Rule
    learning_rate: float


OPTIMIZERS: Mapping[str, Kind] = {
    "sgd": Kind(sgd, 1.0),
    "momentum": Kind(momentum, 1.0),
    "adam": Kind(adam, 5e-3),
    "yogi": Kind(yogi, 5e-3),
}
DEFAULT_OPTIMIZER = "sgd"


@dataclass(frozen=True)
class ServerOptimizer:
    """A row of `OPTIMIZERS` with its rates; plain SGD at rate 1, which adds the mean, if nothing is said."""

    name: str = DEFAULT_OPTIMIZER
    rates: Rates = Rates()

    @property
    def plain(self) -> bool:
        """Whether the new values are the old ones and the mean, as in FedAvg: what exactness asks for."""
        return self.name == DEFAULT_OPTIMIZER and self.rates.learning_rate == 1

    def step(self, state: ServerState, reduced: Mean) -> ServerState:
        """The state after the mean; a factor that nobody sent stays. Sums are float64 until here."""
        change, extra = self._changes(state, reduced)
        values = state.adapter.tensors
        moved = {key: (values[key] + step).astype(np.float32) for key, step in change.items() if key in values}
        base_update = {name: step.astype(np.float32) for (kind, name), step in change.items() if kind == "base"}
        return replace(
            state,
            adapter=state.adapter.with_tensors(moved),
            base_update=base_update,
            extra=state.extra.replaced(extra),
        )

    def _changes(self, state: ServerState, reduced: Mean) -> tuple[dict[Key, Array], dict[Key, Array]]:
        changes, extra = {}, {}
        for key, update in reduced.update.items():
            kind, name = key
            names = (FIRST + kind, name), (SECOND + kind, name)
            starts = np.zeros_like(update), np.full_like(update, self.rates.epsilon**2)
            held = [
                state.extra[n].astype(np.float64) if n in state.extra else s for n, s in zip(names, starts, strict=True)
            ]
            step, *moments = OPTIMIZERS[self.name].rule(update, held[0], held[1], self.rates)
            there = reduced.uploaded[key]
            changes[key] = step if there.all() else np.where(there, step, 0.0)
            for moment_name, old, new in zip(names, held, moments, strict=True):
                if new is not None:
                    extra[moment_name] = np.where(there, new, old).astype(np.float32)
        return changes, extra


PLAIN = ServerOptimizer()


def moments(extra: Tensors, kind: str) -> Tensors:
    """The moments of one kind of value among a state's extra tensors."""
    return extra.of(FIRST + kind, SECOND + kind)
