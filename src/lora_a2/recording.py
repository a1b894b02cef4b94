"""What a run records for analysis, round by round, from the replies that the server aggregates. NumPy only.

Costs little beside the training: changes stay in factors of low rank, products are formed one module at a time.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from lora_a2.algebra import dense
from lora_a2.analysis.record import FloatArray64, RoundAnalysis, pack_mask
from lora_a2.method import Method, trained_adapter
from lora_a2.types import Factor, Factors, FloatArray, Layout, Reply, ServerState, weight_name

MAX_PAIRED = 64
"""Clients of a round whose updates are compared pair by pair; beyond it memory and lines would grow with the cohort."""

_TERMS = 32  # products of one module that wait to be added up densely


class ProductSum:
    """Σ c · B @ A of one module, for terms that come one at a time; memory does not grow with their number.

    Terms that differ in one factor only are added up in that factor, so that one product remains of them.
    """

    def __init__(self) -> None:
        self._terms: list[Factors] = []
        self._dense: FloatArray64 | None = None

    def add(self, c: float, f: Factors, trained: frozenset[Factor]) -> None:
        """Adds c · B @ A; `trained` names the factors in which terms may differ."""
        in_b = "B" in trained
        a, b = f.A.astype(np.float64), f.B.astype(np.float64)
        scaled = Factors(A=a, B=c * b) if in_b else Factors(A=c * a, B=b)  # type: ignore[arg-type]
        last = self._terms[-1] if self._terms else None
        if last is not None and trained == {"B"} and np.array_equal(last.A, scaled.A):
            self._terms[-1] = Factors(A=last.A, B=last.B + scaled.B)
        elif last is not None and trained == {"A"} and np.array_equal(last.B, scaled.B):
            self._terms[-1] = Factors(A=last.A + scaled.A, B=last.B)
        else:
            self._terms.append(scaled)
        if len(self._terms) > _TERMS:
            self._dense, self._terms = self.total(), []

    def total(self) -> FloatArray64:
        """The sum (d_out, d_in) so far."""
        product = np.concatenate([f.B for f in self._terms], axis=1) @ np.concatenate([f.A for f in self._terms])
        return np.asarray(product if self._dense is None else self._dense + product, np.float64)


@dataclass(frozen=True)
class _Seen:
    """What is kept of a reply until the round ends; `changes`: one (left (d_out, R), right (R, d_in)) a module."""

    client: int
    mask: str | None
    changes: list[tuple[FloatArray, FloatArray]] | None


class Recorder:
    """Hears of every reply of a round, and sums the round up when its new state is there.

    `seconds` is the time that the last round's recording took.
    """

    def __init__(self, layout: Layout, method: Method) -> None:
        self._layout, self._method = layout, method
        # A private factor never reaches the server, and full fine-tuning moves more than can be kept of K clients.
        self._whole = not (method.private or method.full)
        self._clear()

    def _clear(self) -> None:
        self._seen: list[_Seen] = []
        self._sums = {m.name: ProductSum() for m in self._layout.modules}
        self._examples, self._rank = 0, 0
        self.seconds = 0.0

    def reply(self, reply: Reply) -> None:
        """Takes in a reply that counts."""
        began = time.perf_counter()
        if not self._seen:
            self._clear()
        upload, start = reply.upload, reply.download.adapter
        self._rank = start.rank
        selects = self._method.select is not None and upload.mask is not None
        mask = pack_mask(upload.mask, self._layout) if selects and upload.mask is not None else None
        if self._whole:
            self._examples += upload.num_examples
            for name, factors in trained_adapter(reply).factors.items():
                self._sums[name].add(upload.num_examples * start.scaling, factors, upload.trainable)
        paired = self._whole and len(self._seen) < MAX_PAIRED
        self._seen.append(_Seen(reply.profile.id, mask, _changes(reply, self._layout) if paired else None))
        self.seconds += time.perf_counter() - began

    def finish(self, before: ServerState, after: ServerState) -> RoundAnalysis:
        """The round between two states, of whose replies all have been heard."""
        began = time.perf_counter()
        seen = sorted(self._seen, key=lambda s: s.client)
        norms, cosines = _similarities([s.changes for s in seen if s.changes is not None])
        lost, moved = self._discordance(before, after) if self._whole else (None, None)
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
        for module in self._layout.modules:
            new = _effective(after, module.name)
            if (update := after.base_update.get(weight_name(module.name))) is not None:
                new = new + dense(update)
            lost += float(np.sum((self._sums[module.name].total() / self._examples - new) ** 2))
            moved += float(np.sum((new - _effective(before, module.name)) ** 2))
        return _digits(np.sqrt(lost)), _digits(np.sqrt(moved))


def _effective(state: ServerState, name: str) -> FloatArray64:
    """scaling · B @ A (d_out, d_in) in float64. What base weights had moved by is common to all, and left out."""
    f = state.adapter.factors[name]
    return np.asarray(state.adapter.scaling * (f.B.astype(np.float64) @ f.A), np.float64)


def _changes(reply: Reply, layout: Layout) -> list[tuple[FloatArray, FloatArray]]:
    """The change of a client's effective weights, module by module, as factors: ΔB A + (B + ΔB) ΔA, zero slices left out."""
    start, update = reply.download.adapter, reply.upload.update
    result = []
    for module in layout.modules:
        old, change = start.factors[module.name], update.factors[module.name]
        in_b, in_a = change.B.any(axis=0), change.A.any(axis=1)
        left = np.concatenate([change.B[:, in_b], (old.B + change.B)[:, in_a]], axis=1)
        right = np.concatenate([old.A[in_b], change.A[in_a]])
        result.append((np.float32(start.scaling) * left, right))
    return result


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
