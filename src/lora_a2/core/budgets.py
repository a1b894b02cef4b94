"""Rank budgets: how many ranks a module each client may upload, from one number, a list or a distribution.

The distributions are those of Table 8 in Koo, Jang, Ok: "Towards Robust and Efficient Federated Low-Rank Adaptation
with Heterogeneous Clients", ACL 2025, https://arxiv.org/abs/2410.22815. NumPy only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias, get_args

import numpy as np

from lora_a2.core.names import known_name
from lora_a2.errors import ConfigError

Distribution = Literal["uniform", "heavy-tail", "normal"]
RankBudget: TypeAlias = int | tuple[int, ...] | Distribution

DISTRIBUTIONS: tuple[Distribution, ...] = get_args(Distribution)

_WEIGHTS: Mapping[str, Mapping[int, int]] = {
    "uniform": {1: 1, 2: 1, 4: 1, 8: 1, 16: 1},
    "heavy-tail": {1: 16, 2: 8, 4: 4, 8: 2},
    "normal": {1: 3, 2: 7, 4: 10, 8: 7, 16: 3},
}
"""Rank → weight. With 30 clients the weights are the paper's numbers of clients."""


def parse_budget(value: object) -> RankBudget:
    """A number, a list of numbers, the name of a distribution, or the text of one of them ("4", "1,2,4").

    Raises:
        ConfigError: none of these.
    """
    if isinstance(value, str):
        text = known_name(value.strip(), DISTRIBUTIONS)
        for name in DISTRIBUTIONS:
            if name == text:
                return name
        try:
            numbers = [int(part) for part in text.strip("[]").split(",")]
        except ValueError:
            raise ConfigError(f"{value!r} is neither a number, nor 1,2,4, nor {', '.join(DISTRIBUTIONS)}.") from None
        return numbers[0] if len(numbers) == 1 and "[" not in text else tuple(numbers)
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    whole = [item for item in items if isinstance(item, int) and not isinstance(item, bool)]
    if len(whole) < len(items):
        raise ConfigError(f"{value!r} is not made of whole numbers.")
    return tuple(whole) if isinstance(value, (list, tuple)) else whole[0]


def budget_values(spec: int | Sequence[int] | str) -> tuple[int, ...]:
    """Every rank budget that `spec` may give to a client.

    Raises:
        ConfigError: no such distribution.
    """
    if isinstance(spec, str):
        if spec not in _WEIGHTS:
            raise ConfigError(f"rank-budget: {spec!r} is no distribution; there are {', '.join(DISTRIBUTIONS)}.")
        return tuple(_WEIGHTS[spec])
    return (spec,) if isinstance(spec, int) else tuple(spec)


def check_budgets(spec: int | Sequence[int] | str, r: int) -> None:
    """Every budget lies between 1 and r.

    Raises:
        ConfigError: one does not, or there is no such distribution.
    """
    values = budget_values(spec)
    if not values:
        raise ConfigError("rank-budget: the list is empty; expected one number for each client.")
    named = f" (the largest rank of '{spec}')" if isinstance(spec, str) else ""
    if min(values) < 1:
        raise ConfigError(f"rank-budget: {min(values)} is below 1; expected numbers from 1 to r = {r}.")
    if max(values) > r:
        raise ConfigError(
            f"rank-budget: {max(values)}{named} is above r = {r}; give at most {r}, or raise r to {max(values)}."
        )


def rank_budgets(
    spec: int | Sequence[int] | str, num_clients: int, r: int, rng: np.random.Generator
) -> tuple[int, ...]:
    """One rank budget for each client.

    A distribution is apportioned to the clients by largest remainders (of equal ones the lower rank comes first) and
    shuffled over them by `rng`; numbers and lists use no randomness.

    Raises:
        ConfigError: a budget outside 1..r, a list of the wrong length, or no such distribution.
    """
    if num_clients < 1:
        raise ConfigError(f"num-clients: {num_clients} is below 1.")
    check_budgets(spec, r)
    if isinstance(spec, str):
        dealt = np.repeat(list(_WEIGHTS[spec]), _apportion(list(_WEIGHTS[spec].values()), num_clients))
        return tuple(int(rank) for rank in rng.permutation(dealt))
    if isinstance(spec, int):
        return (spec,) * num_clients
    check_length(spec, num_clients)
    return tuple(spec)


def check_length(budgets: Sequence[int], num_clients: int) -> None:
    """A list has one budget for each client.

    Raises:
        ConfigError: it has not.
    """
    if len(budgets) != num_clients:
        raise ConfigError(f"rank-budget: the list has {len(budgets)} numbers for {num_clients} clients; give one each.")


def _apportion(weights: Sequence[int], seats: int) -> list[int]:
    """Largest remainder method, in whole numbers."""
    total = sum(weights)
    counts = [weight * seats // total for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda i: (-(weights[i] * seats % total), i))
    for i in by_remainder[: seats - sum(counts)]:
        counts[i] += 1
    return counts
