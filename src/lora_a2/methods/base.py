"""The method record: what a federated-LoRA algorithm is, as functions at the points where bytes cross the wire.

A method is a frozen record; the combinators below make a new one a few lines long. Whoever drives a round
(`federation/server.py`, `federation/client.py`) never asks which method it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lora_a2.core.algebra import add, truncate
from lora_a2.core.options import Option
from lora_a2.core.reduce import example_weights, mean
from lora_a2.core.shown import shown
from lora_a2.core.tensors import Key
from lora_a2.core.transforms import Transform
from lora_a2.core.types import (
    ALL_FACTORS,
    FACTORS,
    Adapter,
    Factor,
    Factors,
    FloatArray,
    Mask,
    Reply,
    ServerState,
    Upload,
)
from lora_a2.errors import ReplyError

Select = Callable[[Adapter, Adapter, frozenset[Factor], int, np.random.Generator], Mask]
Dispatch = Callable[[ServerState, int], Adapter]
Reduce = Callable[[ServerState, Iterable[Reply]], Any]
Step = Callable[[ServerState, Any], ServerState]
ServerStep = Callable[[ServerState, Any, Step], ServerState]


@dataclass(frozen=True)
class Schedule:
    """Which factors clients train: those of `opening` in the first server rounds, then those of `period` over and over.

    Raises:
        ValueError: the period is empty, or names something that is no factor.
    """

    period: tuple[frozenset[Factor], ...]
    opening: tuple[frozenset[Factor], ...] = ()

    def __post_init__(self) -> None:
        unknown = self.ever - set(ALL_FACTORS)
        if not self.period or unknown:
            raise ValueError(f"A schedule needs a period of factors {ALL_FACTORS}; given {self.period}.")

    def __call__(self, server_round: int) -> frozenset[Factor]:
        """The factors of a server round (1-based)."""
        if server_round <= len(self.opening):
            return self.opening[server_round - 1]
        return self.period[(server_round - len(self.opening) - 1) % len(self.period)]

    @property
    def ever(self) -> frozenset[Factor]:
        """The factors of all rounds together."""
        return frozenset[Factor]().union(*self.opening, *self.period)


def always(*factors: Factor) -> Schedule:
    """The same factors in every server round."""
    return Schedule((frozenset(factors),))


def alternate(*factors: Factor) -> Schedule:
    """One factor alone in each server round, in this order, over and over."""
    return Schedule(tuple(frozenset({factor}) for factor in factors))


@dataclass(frozen=True)
class Finished:
    """What a client sends and keeps of its training: an adapter, and the rank slices of it (None: all)."""

    adapter: Adapter
    mask: Mask | None = None


Finish = Callable[[Adapter, Adapter, int], Finished]

Values = Mapping[Key, Any]
"""(factor, module) → its rank slices as rows, A (r, d_in), Bᵀ (r, d_out), R (r, r), and ("head", name) → its tensor."""


@dataclass(frozen=True)
class Penalty:
    """A term of a client's local loss.

    Attributes:
        value: (trained values, received values) → the term, from operations that tensors of PyTorch have too.
        gradient: (trained values, received values) → its gradient by the trained ones; None: by autograd.
    """

    value: Callable[[Values, Values], Any]
    gradient: Callable[[Values, Values], Values] | None = None


@dataclass(frozen=True)
class Gradients:
    """Rounds in which clients do not train: they send the gradient of the target weights at the start.

    It is the mean over `examples` of a client's examples, drawn from the run's seed.
    """

    rounds: frozenset[int]
    examples: int


def broadcast(state: ServerState, rank: int) -> Adapter:
    """Every client starts from the server's adapter."""
    return state.adapter


def truncate_ranks(state: ServerState, rank: int) -> Adapter:
    """A client of rank r_k starts from the first r_k rank slices, at the server's scaling.

    It then has lora_alpha_k = lora_alpha · r_k / r. With one lora_alpha for all, the scaling lora_alpha / r_k would change
    what the same slices mean from client to client.
    """
    return truncate(state.adapter, min(rank, state.adapter.rank))


def optimized(state: ServerState, reduced: Any, step: Step) -> ServerState:
    """The server optimizer's step, and nothing else."""
    return step(state, reduced)


def replies_accepted(upload: Upload) -> None:
    """Asks nothing beyond what must hold of every upload."""


@dataclass(frozen=True)
class Method:
    """One federated-LoRA algorithm.

    Attributes:
        name: as typed on the command line.
        reference: authors, title, venue, link.
        uploads, downloads: what travels, in a few words.

        schedule: server round → the factors that clients train in it; the others are frozen.
        core: adapters have a core R (r, r) between B and A.
        private: trained factors that stay on the client, which keeps them from round to round.
        server_moves: factors that the server changes in rounds in which no client trains them.
        restarts: trained factors that the server puts back to the start of the run after each round.
        moves_base: the server moves frozen weights of the target modules.
        full: clients train every weight of the backbone instead of an adapter.
        mixed_ranks: clients may hold adapters of, or upload, different ranks.

        select: (start, probed, trained factors, rank budget, rng) → Mask, after a probe; None: all ranks are trained.
        finish: (start, trained, server round) → what is sent and kept: pruned or rotated, say; None: as trained.
        rotates: `finish` turns rank slices into each other, so that values move farther than training moves them.
        penalties: terms of the local loss.
        transforms: what becomes of an update on its way.
        gradients: rounds in which clients send gradients of the target weights, from which the server makes all factors.

        dispatch: (state, rank) → the adapter from which clients of that rank start: rank slices of the server's adapter, or,
            with a sparse transform, anything.
        accepts: raises ReplyError for an upload that this method's clients do not make.
        reduce: (state, replies) → what the replies come to; by default their weighted mean, streaming.
        server_step: (state, reduced, step) → the new state, if `step` is that of the server optimizer; by default it alone.

        linear: `reduce` is linear in the updates, and `server_step` uses `step`.
        exact: with plain SGD at rate 1 on the server, the new effective weights are the weighted mean of the clients'.
        learning_rate_ratio: default η_B / η_A.
        learning_rate_scale: default η over the model's default for adapters.
        update_rank: (sum of the ranks of a round's clients, the server's rank) → the rank of the round's change of base
            weights; for estimates of cost.
        options: what a user may choose of this method alone.
        variant: builds the method with its options, given by keyword; None if it has none.
    """

    name: str
    reference: str
    uploads: str
    downloads: str
    schedule: Schedule
    core: bool = False
    private: frozenset[Factor] = frozenset()
    server_moves: frozenset[Factor] = frozenset()
    restarts: frozenset[Factor] = frozenset()
    moves_base: bool = False
    full: bool = False
    mixed_ranks: bool = False
    select: Select | None = None
    finish: Finish | None = None
    rotates: bool = False
    penalties: tuple[Penalty, ...] = ()
    transforms: tuple[Transform, ...] = ()
    gradients: Gradients | None = None
    dispatch: Dispatch = broadcast
    accepts: Callable[[Upload], None] = replies_accepted
    reduce: Reduce = mean
    server_step: ServerStep = optimized
    linear: bool = True
    exact: bool = False
    learning_rate_ratio: float = 1.0
    learning_rate_scale: float = 1.0
    update_rank: Callable[[int, int], int] | None = None
    options: tuple[Option, ...] = ()
    variant: Callable[..., Method] | None = None

    def __repr__(self) -> str:
        return shown(self, repr(self.name), f"uploads {self.uploads}")

    @property
    def factors(self) -> tuple[Factor, ...]:
        """The factors that its adapters have."""
        return ALL_FACTORS if self.core else FACTORS

    @property
    def frozen(self) -> frozenset[Factor]:
        """The factors that nobody changes; a client derives them from the seed."""
        moved = self.schedule.ever | self.server_moves
        return frozenset() if self.gradients is not None else frozenset(self.factors) - moved

    @property
    def travels(self) -> frozenset[Factor]:
        """The factors that downloads carry; a client derives a frozen one from the seed and keeps a private one."""
        return frozenset(self.factors) - self.frozen - self.private

    @property
    def sparse(self) -> bool:
        """Whether entries that are zero do not travel."""
        return any(transform.sparse for transform in self.transforms)

    @property
    def density(self) -> float:
        """The share of the entries that travel."""
        return min((transform.density for transform in self.transforms), default=1.0)

    def asks_gradients(self, server_round: int) -> bool:
        """Whether clients send gradients in that round."""
        return self.gradients is not None and server_round in self.gradients.rounds

    def changes(self, server_round: int) -> frozenset[Factor]:
        """The factors that a server round may change on the server; if it has a choice, some of their rank slices."""
        if self.asks_gradients(server_round):
            return self.travels
        return (self.shared(server_round) | self.server_moves) - self.restarts

    def shared(self, server_round: int) -> frozenset[Factor]:
        """The factors in an upload of that round."""
        return self.schedule(server_round) - self.private


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


def require_prefix(upload: Upload) -> None:
    """Refuses a mask that is not the same first rank slices of every module.

    Raises:
        ReplyError: it is not.
    """
    if upload.mask is None:
        return
    kept = {tuple(keep.tolist()) for keep in upload.mask.values()}
    if len(kept) > 1 or not (first := np.array(kept.pop()))[0] or (np.diff(first.astype(int)) > 0).any():
        raise ReplyError(f"Client {upload.client} pruned otherwise than to the same first rank slices everywhere.")
