"""Who takes part in a round: drawn from (seed, server round), the same on every driver."""

from __future__ import annotations

from collections.abc import Sequence

from lora_a2.core.randomness import generator
from lora_a2.core.types import ClientProfile


def cohort_size(num_clients: int, fraction_train: float) -> int:
    """Number of clients in a server round: the nearest whole number to the fraction, at least one."""
    return max(1, round(fraction_train * num_clients))


def choose_cohort(
    profiles: Sequence[ClientProfile], fraction_train: float, seed: int, server_round: int
) -> tuple[ClientProfile, ...]:
    """The clients of a round, those with the most examples first, equal ones by id, whatever the order of `profiles`.

    In this order they are trained and their uploads summed: what takes longest begins first, so that workers end together
    (R. L. Graham, "Bounds on multiprocessing timing anomalies", SIAM Journal on Applied Mathematics 17(2), 1969).
    """
    ordered = sorted(profiles, key=lambda p: p.id)
    size = cohort_size(len(ordered), fraction_train)
    chosen = generator(seed, "cohort", server_round).choice(len(ordered), size, replace=False)
    return tuple(sorted((ordered[i] for i in chosen), key=lambda p: (-p.num_examples, p.id)))
