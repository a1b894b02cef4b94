"""What a run records for analysis, round by round, from the replies that the server aggregates. NumPy only.

Costs little beside the training: changes stay in factors of low rank, products are formed one module at a time.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from lora_a2.analysis.record import FloatArray64, RoundAnalysis, pack_mask
from lora_a2.core.types import FACTORS, BoolArray, Factor, Factors, FloatArray, Layout, Reply, ServerState, weight_name
from lora_a2.methods.base import Method

MAX_PAIRED = 64
"""Clients of a round whose updates are compared pair by pair; beyond it memory and lines would grow with the cohort."""

_MAX_RANK = 256  # up to this rank a sum stays in factors


class ProductSum:
    """Σ c · B @ A of one module, for terms that come one at a time; memory does not grow with their number.

    Terms that differ in one factor only are added up in that factor, so that one product remains of them. Computed in float64:
    what an exact method loses shows as rounding.
    """

    def __init__(self) -> None:
        self._terms: list[Factors] = []
        self._dense: FloatArray64 | None = None

    def add(self, c: float, f: Factors, trained: frozenset[Factor]) -> None:
        """Adds c · B @ A; `trained` names the factors in which terms may differ."""
        last = self._terms[-1] if self._terms else None
        if last is not None and trained == {"B"} and np.array_equal(last.A, f.A):
            self._terms[-1] = Factors(A=last.A, B=last.B + _times(c, f.B))
        elif last is not None and trained == {"A"} and np.array_equal(last.B, f.B):
            self._terms[-1] = Factors(A=last.A + _times(c, f.A), B=last.B)
        elif trained == {"A"}:
            self._terms.append(Factors(A=_times(c, f.A), B=f.B))
        else:
            self._terms.append(Factors(A=f.A, B=_times(c, f.B)))
        if sum(term.rank for term in self._terms) > _MAX_RANK:
            self._dense, self._terms = self.total(), []

    def add_dense(self, c: float, product: FloatArray) -> None:
        """Adds c · product (d_out, d_in)."""
        self._dense, self._terms = self.total() + c * product, []

    def total(self) -> FloatArray64:
        """The sum (d_out, d_in) so far."""
        left, right = self._stacked()
        return np.asarray(left @ right if self._dense is None else self._dense + left @ right, np.float64)

    def square(self) -> float:
        """The sum's squared Frobenius norm; of factors it is Σ (Lᵀ L) ∘ (R Rᵀ)."""
        if self._dense is not None:
            return float(np.sum(self.total() ** 2))
        left, right = self._stacked()
        return max(0.0, float(np.sum((left.T @ left) * (right @ right.T))))

    def _stacked(self) -> tuple[FloatArray64, FloatArray64]:
        left = np.concatenate([f.B for f in self._terms], axis=1, dtype=np.float64) if self._terms else np.zeros((1, 0))
        right = np.concatenate([f.A for f in self._terms], dtype=np.float64) if self._terms else np.zeros((0, 1))
        return left, right


def _times(c: float, values: FloatArray) -> FloatArray:
    """c · values in float64, for use inside a sum: wider than factors are elsewhere."""
    return cast(FloatArray, np.float64(c) * values)


@dataclass(frozen=True)
class _Seen:
    """What is kept of a reply until the round ends; `changes`: one (left (d_out, R), right (R, d_in)) a module."""

    client: int
    mask: str | None
    changes: list[tuple[FloatArray, FloatArray]] | None


class Recorder:
    """Is notified of every reply of a round, and sums the round up when its new state is there.

    `seconds` is the time that the last round's recording took.
    """

    def __init__(self, layout: Layout, method: Method) -> None:
        self._layout, self._method = layout, method
        # A private factor never reaches the server, and full fine-tuning moves more than can be kept of K clients.
        self._whole = not (method.private or method.full)
        self.begin()

    def begin(self) -> None:
        """Forgets what it heard: a round begins, or begins again."""
        self._seen: list[_Seen] = []
        self._sums = {m.name: ProductSum() for m in self._layout.modules}
        self._examples, self._rank = 0, 0
        self._trained: frozenset[Factor] = frozenset()
        self._gradients = False
        self.seconds = 0.0

    def reply(self, reply: Reply) -> None:
        """Takes in a reply that counts."""
        began = time.perf_counter()
        reply = _paired(reply)
        upload, start = reply.upload, reply.download.adapter
        self._rank, self._trained = start.rank, upload.shared
        self._gradients = self._method.asks_gradients(upload.server_round)
        selects = self._method.select is not None and upload.mask is not None
        mask = pack_mask(upload.mask, self._layout) if selects and upload.mask is not None else None
        if self._whole:
            self._examples += upload.num_examples
            for name, factors in start.factors.items():
                end = _end(factors, upload.update.factors[name], upload.shared)
                self._sums[name].add(upload.num_examples * start.scaling, end, upload.shared)
        paired = self._whole and len(self._seen) < MAX_PAIRED
        self._seen.append(_Seen(reply.profile.id, mask, _changes(reply, self._layout) if paired else None))
        self.seconds += time.perf_counter() - began

    def finish(self, before: ServerState, after: ServerState) -> RoundAnalysis:
        """The round between two states, of whose replies all have been heard."""
        began = time.perf_counter()
        seen = sorted(self._seen, key=lambda s: s.client)
        norms, cosines = _similarities([s.changes for s in seen if s.changes is not None])
        known = self._whole and not self._gradients  # what gradients come to is no mean of updates
        lost, moved = self._discordance(before, after) if known else (None, None)
        masks = tuple(s.mask for s in seen if s.mask is not None)
        found = RoundAnalysis(
            server_round=after.server_round,
            clients=tuple(s.client for s in seen),
            rank=self._rank if masks else None,
            masks=masks,
            norms=norms,
            cosines=cosines,
            discordance=lost,
            change=moved,
        )
        self._seen = []
        self.seconds += time.perf_counter() - began
        return found

    def _discordance(self, before: ServerState, after: ServerState) -> tuple[float, float]:
        lost = moved = 0.0
        for name, mean in self._sums.items():
            change = ProductSum()
            for state, sign in ((after, 1), (before, -1)):
                change.add(sign * state.adapter.scaling, state.adapter.factors[name].pair, self._trained)
            # The sum of the clients has weights n_k, so that the server's part counts Σ n_k times.
            mean.add(-self._examples * after.adapter.scaling, after.adapter.factors[name].pair, self._trained)
            if (update := after.base_update.get(weight_name(name))) is not None:
                for total, c in ((change, 1), (mean, -self._examples)):
                    _add_update(total, c, update)
            lost += mean.square() / self._examples**2
            moved += change.square()
        return _digits(np.sqrt(lost)), _digits(np.sqrt(moved))


def _paired(reply: Reply) -> Reply:
    """A reply as of a method with two factors: a core that moved by ΔR is a B that moved by B ΔR."""
    start, upload = reply.download.adapter, reply.upload
    if start.kinds == FACTORS:
        return reply
    moved = {
        name: Factors(A=np.zeros_like(f.A), B=f.B @ upload.update.factors[name].get("R"))
        for name, f in start.factors.items()
    }
    shared: frozenset[Factor] = frozenset({"B"}) if upload.shared else frozenset()
    return Reply(
        reply.profile,
        replace(reply.download, adapter=start.pair),
        replace(upload, shared=shared, update=replace(upload.update, factors=moved)),
    )


def _add_update(total: ProductSum, c: float, update: FloatArray | Factors) -> None:
    if isinstance(update, Factors):
        total.add(c, update, frozenset())
    else:
        total.add_dense(c, update)


def _end(start: Factors, update: Factors, trained: frozenset[Factor]) -> Factors:
    return Factors(
        A=start.A + update.A if "A" in trained else start.A, B=start.B + update.B if "B" in trained else start.B
    )


def _changes(reply: Reply, layout: Layout) -> list[tuple[FloatArray, FloatArray]]:
    """The change of a client's effective weights, module by module, as factors: ΔB A + (B + ΔB) ΔA, zero slices left out."""
    start, upload = reply.download.adapter, reply.upload
    result = []
    for module in layout.modules:
        old, change = start.factors[module.name], upload.update.factors[module.name]
        in_b, in_a = _moved(change, "B", upload.shared), _moved(change, "A", upload.shared)
        left = np.concatenate([change.B[:, in_b], (old.B + change.B)[:, in_a]], axis=1)
        right = np.concatenate([old.A[in_b], change.A[in_a]])
        result.append((np.float32(start.scaling) * left, right))
    return result


def _moved(change: Factors, factor: Factor, trained: frozenset[Factor]) -> BoolArray:
    """(r,) which rank slices of a factor changed."""
    if factor not in trained:
        return np.zeros(change.rank, np.bool_)
    return np.asarray(change.slices(factor).any(axis=1))


def _similarities(
    changes: list[list[tuple[FloatArray, FloatArray]]],
) -> tuple[tuple[float, ...], tuple[float | None, ...]]:
    """Norms (K,) of the clients' changes, and the upper triangle of their cosines."""
    if not changes:
        return (), ()
    gram = np.sum([gram_matrix(list(module)) for module in zip(*changes, strict=True)], axis=0)
    norms = np.sqrt(np.diag(gram))
    upper = np.triu_indices(len(norms), 1)
    products = np.outer(norms, norms)[upper]
    cosines = [round(float(g / p), 4) if p > 0 else None for g, p in zip(gram[upper], products, strict=True)]
    return tuple(_digits(n) for n in norms), tuple(cosines)


def gram_matrix(changes: list[tuple[FloatArray, FloatArray]]) -> FloatArray64:
    """(K, K) Frobenius inner products ⟨L_i R_i, L_j R_j⟩ = Σ (L_iᵀ L_j) ∘ (R_i R_jᵀ), without forming a product."""
    owners = np.repeat(np.arange(len(changes)), [left.shape[1] for left, _ in changes])
    of_client = (owners == np.arange(len(changes))[:, None]).astype(np.float64)
    left = np.concatenate([left for left, _ in changes], axis=1)
    right = np.concatenate([right for _, right in changes])
    return np.asarray(of_client @ ((left.T @ left) * (right @ right.T)).astype(np.float64) @ of_client.T, np.float64)


def _digits(value: float) -> float:
    """Six significant digits, for short lines."""
    return float(f"{value:.6g}")
