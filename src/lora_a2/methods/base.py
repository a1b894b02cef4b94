"""The method record: what a federated-LoRA algorithm is, as functions at the points where bytes cross the wire.

A method is a frozen record; the combinators below make a new one a few lines long. Whoever drives a round
(`rounds.py`) never asks which method it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lora_a2.core.algebra import add, truncate
from lora_a2.core.options import Option
from lora_a2.core.types import (
    FACTORS,
    Adapter,
    ClientProfile,
    Factor,
    Factors,
    FloatArray,
    Mask,
    Reply,
    ServerState,
)
from lora_a2.errors import ReplyError

Schedule = Callable[[int], frozenset[Factor]]
Select = Callable[[Adapter, Adapter, frozenset[Factor], int, np.random.Generator], Mask]
Prune = Callable[[Adapter, Adapter], "Mask | None"]
Compress = Callable[[Adapter], Adapter]
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


def truncate_ranks(state: ServerState, profile: ClientProfile) -> Adapter:
    """Every client receives the first rank slices, as many as it holds, at the server's scaling.

    A client of rank r_k then has lora_alpha_k = lora_alpha · r_k / r. With one lora_alpha for all, the scaling
    lora_alpha / r_k would change what the same slices mean from client to client.
    """
    return truncate(state.adapter, min(state.client_ranks.get(profile.id, profile.rank), state.adapter.rank))


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


def example_weights(replies: Sequence[Reply]) -> list[float]:
    """w_k = n_k / Σ n_j.

    Raises:
        ReplyError: there is no reply, or the examples add up to zero.
    """
    total = sum(reply.upload.num_examples for reply in replies)
    if total <= 0:
        raise ReplyError("No examples to weigh the replies by: the round had no usable reply.")
    return [reply.upload.num_examples / total for reply in replies]


def trained_adapter(reply: Reply) -> Adapter:
    """What the client ended with, as far as it sent it: download + update."""
    return add(reply.download.adapter, reply.upload.update)


def mean_head(state: ServerState, replies: Sequence[Reply]) -> dict[str, FloatArray]:
    """The trained head, moved by the weighted mean of the clients' changes; for methods that aggregate factors otherwise."""
    weights = example_weights(replies)
    head = {}
    for name, values in state.adapter.head.items():
        total = np.zeros(values.shape, np.float64)
        for weight, reply in zip(weights, replies, strict=True):
            total += weight * reply.upload.update.head[name]
        head[name] = (values + total).astype(np.float32)
    return head


def scaled_products(replies: Sequence[Reply]) -> dict[str, list[tuple[float, Factors]]]:
    """Module → the clients' terms (w_k · s_k, factors) of Σ_k w_k s_k B_k A_k, ready for `algebra.stacked`."""
    terms: dict[str, list[tuple[float, Factors]]] = {}
    for weight, reply in zip(example_weights(replies), replies, strict=True):
        trained = trained_adapter(reply)
        for name, factors in trained.factors.items():
            terms.setdefault(name, []).append((weight * trained.scaling, factors))
    return terms


def _accumulate(sums: dict[tuple[str, str], np.ndarray], key: tuple[str, str], values: np.ndarray, n: int) -> None:
    if key not in sums:
        sums[key] = np.zeros(values.shape, np.float64)
    sums[key] += np.float64(n) * values


@dataclass(frozen=True, slots=True)
class TailPenalty:
    """A term of the local loss that lets the last rank slices shrink: weight · Σ_modules ‖B[:, t:]‖ · ‖A[t:]‖, t = ⌊decay · r⌋."""

    weight: float
    decay: float

    def kept(self, rank: int) -> int:
        """How many of `rank` slices come before the tail; at least one."""
        return max(1, int(self.decay * rank))


@dataclass(frozen=True)
class Method:
    """One federated-LoRA algorithm.

    Attributes:
        name: as typed on the command line.
        reference: authors, title, venue, link.
        uploads, downloads: what travels, in a few words.
        trainable: server round (1-based) → the factors that clients train in it; the other factor is frozen.
        select: (start, probed, trainable, rank budget, rng) → Mask, on the client after a probe epoch; None: all ranks.
        prune: (start, trained) → Mask of the rank slices that a client keeps after training, or None; on the client.
        compress: (update) → what is sent of it, on the client; entries that are zero do not travel, up or down.
        penalty: a term of the local loss.
        dispatch: (state, profile) → the adapter that this client starts from.
        aggregate: (state, replies) → the new state. `server_round` and `base` are advanced by the caller.
        density: the share of the entries that `compress` leaves, up and down; for estimates of cost.
        base_rank: (sum of the ranks in a cohort, the server's rank) → the rank of the round's `base_update`; None: the
            method moves no base weights. For estimates of cost.
        private: trained factors that stay on the client; it keeps them from round to round.
        server_moves: factors that the server changes though no client trains them.
        full: clients train every weight of the backbone instead of an adapter.
        learning_rate_ratio: default η_B / η_A.
        learning_rate_scale: default η over the model's default for adapters.
        linear: the new state is linear in the updates.
        exact: the new effective weights are the weighted mean of the clients' effective weights.
        mixed_ranks: clients may hold adapters of, or upload, different ranks.
        options: what a user may choose of this method alone.
        variant: builds the method with its options, given by keyword; None where it has none.
    """

    name: str
    reference: str
    uploads: str
    downloads: str
    trainable: Schedule
    select: Select | None = None
    prune: Prune | None = None
    compress: Compress | None = None
    penalty: TailPenalty | None = None
    dispatch: Dispatch = broadcast
    aggregate: Aggregate = weighted_mean
    density: float = 1.0
    base_rank: Callable[[int, int], int] | None = None
    private: frozenset[Factor] = frozenset()
    server_moves: frozenset[Factor] = frozenset()
    full: bool = False
    learning_rate_ratio: float = 1.0
    learning_rate_scale: float = 1.0
    linear: bool = True
    exact: bool = False
    mixed_ranks: bool = False
    options: tuple[Option, ...] = ()
    variant: Callable[..., Method] | None = None

    @property
    def ever_trained(self) -> frozenset[Factor]:
        """The factors trained in some round; the others keep their seeded start for ever and never travel."""
        return self.trainable(1) | self.trainable(2)

    @property
    def frozen(self) -> frozenset[Factor]:
        """The factors that nobody changes."""
        return frozenset(FACTORS) - self.ever_trained - self.server_moves

    @property
    def travels(self) -> frozenset[Factor]:
        """The factors in a download; a client derives a frozen one from the seed and keeps a private one."""
        return (self.ever_trained | self.server_moves) - self.private

    def shared(self, server_round: int) -> frozenset[Factor]:
        """The factors in an upload of that round."""
        return self.trainable(server_round) - self.private
