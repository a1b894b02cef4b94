"""The method record: what a federated-LoRA algorithm is, as functions at the points where bytes cross the wire.

A method is a frozen record; the combinators below make a new one a few lines long. Whoever drives a round
(`rounds.py`) never asks which method it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from lora_a2.errors import ReplyError
from lora_a2.types import (
    FACTORS,
    Adapter,
    ClientProfile,
    Factor,
    Factors,
    Mask,
    Reply,
    ServerState,
)

Schedule = Callable[[int], frozenset[Factor]]
Select = Callable[[Adapter, Adapter, frozenset[Factor], int], Mask]
Dispatch = Callable[[ServerState, ClientProfile], Adapter]
Aggregate = Callable[[ServerState, Iterable[Reply]], ServerState]


def always(*factors: Factor) -> Schedule:
    """The same factors in every server round."""
    chosen = frozenset(factors)
    return lambda server_round: chosen


def alternate(first: Factor, second: Factor) -> Schedule:
    """`first` alone in odd server rounds (1-based), `second` alone in even ones."""
    odd, even = frozenset({first}), frozenset({second})
    return lambda server_round: odd if server_round % 2 else even


def broadcast(state: ServerState, profile: ClientProfile) -> Adapter:
    """Every client receives the server's adapter."""
    return state.adapter


def weighted_mean(state: ServerState, replies: Iterable[Reply]) -> ServerState:
    """Adds Σ_k w_k · update_k with w_k = n_k / Σ n_j, factor by factor and for the head.

    A rank slice that a client did not send counts as zero from that client. Accumulates in float64, one reply at a
    time, so memory does not grow with the cohort. With one factor trained and the other shared and frozen this is
    the exact weighted mean of the clients' B·A; with both it is not (discordance).

    Raises:
        ReplyError: there is no reply, or the examples add up to zero.
    """
    sums: dict[tuple[str, str], np.ndarray] = {}
    total = 0
    for reply in replies:
        update, examples = reply.upload.update, reply.upload.num_examples
        total += examples
        for factor in sorted(reply.upload.trainable):
            for name, change in update.factors.items():
                _accumulate(sums, (factor, name), change.get(factor), examples)
        for name, values in update.head.items():
            _accumulate(sums, ("head", name), values, examples)
    if total <= 0:
        raise ReplyError("No examples to weigh the replies by: the round had no usable reply.")

    def moved(kind: str, name: str, old: np.ndarray) -> np.ndarray:
        added = sums.get((kind, name))
        return old if added is None else (old + added / total).astype(np.float32)

    adapter = state.adapter
    factors = {name: Factors(A=moved("A", name, f.A), B=moved("B", name, f.B)) for name, f in adapter.factors.items()}
    head = {name: moved("head", name, values) for name, values in adapter.head.items()}
    return replace(state, adapter=replace(adapter, factors=factors, head=head))


def _accumulate(sums: dict[tuple[str, str], np.ndarray], key: tuple[str, str], values: np.ndarray, n: int) -> None:
    if key not in sums:
        sums[key] = np.zeros(values.shape, np.float64)
    sums[key] += np.float64(n) * values


@dataclass(frozen=True)
class Method:
    """One federated-LoRA algorithm.

    Attributes:
        name: as typed on the command line.
        reference: authors, title, venue, link.
        trainable: server round (1-based) → the factors trained in it; the other factor is frozen.
        select: (start, probed, trainable, rank budget) → Mask, on the client after a probe epoch; None: all ranks.
        dispatch: (state, profile) → the adapter that this client starts from.
        aggregate: (state, replies) → the new state. `server_round` is advanced by the caller.
        learning_rate_ratio: default η_B / η_A.
        linear: the new state is linear in the updates.
        exact: the new effective weights are the weighted mean of the clients' effective weights.
        mixed_ranks: clients may hold adapters of, or upload, different ranks.
    """

    name: str
    reference: str
    trainable: Schedule
    select: Select | None = None
    dispatch: Dispatch = broadcast
    aggregate: Aggregate = weighted_mean
    learning_rate_ratio: float = 1.0
    linear: bool = True
    exact: bool = False
    mixed_ranks: bool = False

    @property
    def ever_trained(self) -> frozenset[Factor]:
        """The factors trained in some round; the others keep their seeded start for ever and never travel."""
        return self.trainable(1) | self.trainable(2)

    @property
    def frozen(self) -> frozenset[Factor]:
        """The factors that no round trains."""
        return frozenset(FACTORS) - self.ever_trained
