"""The trained values of a cohort in one flat buffer, and the tensors that a forward pass reads from it.

Shapes: K clients, P trained values, A (K, R, d_in), Bᵀ (K, R, d_out) a module, where R is the most rank slices that any
client of the cohort holds there, rounded up; a client with fewer is padded with zeros, whose gradients are zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from lora_a2.core.types import FACTORS, Adapter, Factor, FloatArray
from lora_a2.engine.lora import Slot
from lora_a2.engine.network import Network
from lora_a2.engine.transfer import to_device
from lora_a2.engine.work import ClientTask, TrainingSettings

RANK_MULTIPLE = 8
"""Rank slices of a module are padded to a multiple of this: few shapes for matrix libraries to prepare kernels for, and
aligned rows on a GPU."""


@dataclass(frozen=True)
class _Segment:
    """A stretch of the flat buffer: a trained factor of a module, or a tensor of the head.

    A core is padded on both sides: its rows as those of other factors, its columns as the rows of A.
    """

    kind: str
    name: str
    start: int
    shape: tuple[int, ...]

    @property
    def end(self) -> int:
        return self.start + int(np.prod(self.shape))

    def write(self, row: np.ndarray, values: FloatArray) -> None:
        """Puts values into a client's row (P,); what they leave of the stretch stays."""
        row[self.start : self.end].reshape(self.shape)[tuple(slice(n) for n in values.shape)] = values

    def view(self, flat: Tensor) -> Tensor:
        """(K, *shape) of a flat (K, P) buffer."""
        return flat[:, self.start : self.end].view(flat.shape[0], *self.shape)


class CohortParameters:
    """Puts each task's trained rank slices into a flat buffer and back: the selected ones if the start is merged,
    else all of them, those that a mask leaves out at learning rate zero.

    Trained rank slices are rows: A (R, d_in) as it is, B as Bᵀ (R, d_out). The buffer holds B; slots get B times the scaling.

    Args:
        tasks: K clients.
        trainable: the factors trained.
        merged: the common start lies in the frozen weights, and only the change is to be added to it.
        network: for device and compute dtype.
    """

    def __init__(
        self, tasks: Sequence[ClientTask], trainable: frozenset[Factor], merged: bool, network: Network
    ) -> None:
        self.tasks, self.trainable, self.dtype = tasks, trainable, network.dtype
        device = network.device
        self.merged = merged
        self.indices = [_selected(task, compact=merged) for task in tasks]
        ranks = {name: _rounded(max(len(i[name]) for i in self.indices)) for name in tasks[0].start.factors}
        self.modules = [name for name, rank in ranks.items() if rank]
        self.segments = self._segments(ranks)
        size = self.segments[-1].end if self.segments else 0
        ends = [(s.start, s.end) for s in self.segments if s.kind == "B"]
        self.scaled = slice(ends[0][0], ends[-1][1]) if ends else slice(0)
        values = np.zeros((len(tasks), size), np.float32)
        for k, task in enumerate(tasks):
            for s in self.segments:
                s.write(values[k], self._start(k, task, s))
        self.values = to_device(values, device)
        self.origin = self.values.clone() if merged else None
        self.gradient = torch.zeros_like(self.values)
        self._compute = torch.zeros_like(self.values, dtype=self.dtype)
        self._slots: dict[int, dict[str, Slot]] = {}
        self.scaling = torch.tensor([[task.start.scaling] for task in tasks], device=device)
        self.frozen = {
            (factor, name): self.frozen_rows(factor, name, ranks[name]).to(self.dtype)
            for name in self.modules
            for factor in FACTORS
            if factor not in trainable
        }
        self.core = _Core.of(self) if "R" in trainable else None

    def _segments(self, ranks: dict[str, int]) -> list[_Segment]:
        start = self.tasks[0].start
        shapes: list[tuple[str, str, tuple[int, ...]]] = [
            (factor, name, (ranks[name], ranks[name] if factor == "R" else start.factors[name].slices(factor).shape[1]))
            for factor in sorted(self.trainable)
            for name in self.modules
        ]
        shapes += [("head", name, value.shape) for name, value in start.head.items()]
        segments, offset = [], 0
        for kind, name, shape in shapes:
            segments.append(_Segment(kind, name, offset, shape))
            offset = segments[-1].end
        return segments

    def _start(self, k: int, task: ClientTask, s: _Segment) -> FloatArray:
        if s.kind == "head":
            return task.start.head[s.name]
        rows: FloatArray = task.start.factors[s.name].slices(cast(Factor, s.kind))[self.indices[k][s.name]]
        return rows

    def frozen_rows(self, factor: Factor, name: str, rank: int) -> Tensor:
        """(K, R, width) float32 of a factor that is not trained, B with the scaling."""
        rows = [t.start.factors[name].slices(factor)[i[name]] for t, i in zip(self.tasks, self.indices, strict=True)]
        full = np.zeros((len(rows), rank, rows[0].shape[1]), np.float32)
        for k, r in enumerate(rows):
            full[k, : len(r)] = r if factor == "A" else r * self.tasks[k].start.scaling
        return to_device(full, self.values.device)

    def rates(self, settings: TrainingSettings) -> FloatArray:
        """Learning rate of each value, (1, P) float32, or (K, P) where it is zero for slices that a mask leaves out."""
        held = not self.merged and any(task.mask is not None for task in self.tasks)
        rates = np.full((len(self.tasks) if held else 1, self.values.shape[1]), settings.learning_rate, np.float32)
        for s in self.segments:
            block = rates[:, s.start : s.end]
            if s.kind == "B":
                block *= settings.learning_rate_ratio
            if held and s.kind != "head":
                for row, task in zip(block, self.tasks, strict=True):
                    if task.mask is not None:
                        keep = np.zeros(s.shape[0], bool)
                        keep[: len(task.mask[s.name])] = task.mask[s.name]
                        row *= np.repeat(keep, s.shape[1])
        return rates

    def leaves(self, active: int) -> tuple[dict[str, Slot], dict[str, Tensor]]:
        """Slots and heads (K', …) for a forward and a backward pass of the first `active` clients; see `collected`."""
        values, scaling = self.values[:active], self.scaling[:active]
        self.gradient[:active].zero_()
        change = values.clone() if self.origin is None else values - self.origin[:active]
        change[:, self.scaled] *= scaling
        self._compute[:active] = change
        if self.core is not None:
            self.core.spread(change, active)
        if active not in self._slots:
            self._slots[active] = self._make_slots(active)
        heads = {s.name: s.view(values).clone().requires_grad_() for s in self.segments if s.kind == "head"}
        return self._slots[active], heads

    def _make_slots(self, active: int) -> dict[str, Slot]:
        """Views of the buffers, which every step fills anew."""
        compute, gradient = self._compute[:active], self.gradient[:active]
        found = {(s.kind, s.name): (s.view(compute), s.view(gradient)) for s in self.segments if s.kind != "head"}
        if self.core is not None:
            found = self.core.effective(active)
        slots = {}
        for name in self.modules:
            (a, da), (b, db) = (
                found[x, name] if (x, name) in found else (self.frozen[x, name][:active], None) for x in FACTORS
            )
            slots[name] = Slot(A=a, Bt=b, dA=da, dBt=db)
        return slots

    def collected(self, active: int, heads: Mapping[str, Tensor]) -> Tensor:
        """The gradient (K', P) float32 by the values, after a backward pass through the slots and heads of `leaves`."""
        gradient = self.gradient[:active]
        gradient[:, self.scaled] *= self.scaling[:active]
        if self.core is not None:
            self.core.gather(gradient, active)
        for s in self.segments:
            if s.kind == "head":
                s.view(gradient).copy_(cast(Tensor, heads[s.name].grad))
        return gradient

    def take_over(self, before: CohortParameters, source: Tensor, target: Tensor) -> None:
        """Copies what a mask selects, and the head, from a buffer (K, P) of `before`, whose tasks have no masks."""
        segments = {(s.kind, s.name): s for s in before.segments}
        for s in self.segments:
            old, new = segments[s.kind, s.name].view(source), s.view(target)
            if s.kind == "head":
                new.copy_(old)
                continue
            for k, task in enumerate(self.tasks):
                index = self.indices[k][s.name]
                rows = np.arange(len(index)) if task.mask is None else np.flatnonzero(task.mask[s.name][index])
                new[k, rows] = old[k, index[rows]]

    def adapter(self, k: int) -> Adapter:
        """Client k's adapter: its start with the trained rank slices and the head replaced."""
        start = self.tasks[k].start
        values = self.values[k : k + 1].cpu()
        new: dict[tuple[str, str], np.ndarray] = {}
        for s in self.segments:
            rows = s.view(values)[0].numpy()
            if s.kind == "head":
                new["head", s.name] = rows.copy()
                continue
            index = self.indices[k][s.name]
            slices = start.factors[s.name].slices(cast(Factor, s.kind)).copy()
            slices[index] = rows[: len(index), : slices.shape[1]]
            new[s.kind, s.name] = np.ascontiguousarray(slices.T) if s.kind == "B" else slices
        return start.with_tensors(new)

    def clients(self, values: Tensor, active: int) -> Iterator[tuple[Tensor, dict[tuple[str, str], Tensor]]]:
        """Of each active client its row of `values` (K, P), and views of it: rank slices as rows, without what pads."""
        for k in range(active):
            views = {}
            for s in self.segments:
                view = s.view(values[k : k + 1])[0]
                if s.kind != "head":
                    held = len(self.indices[k][s.name])
                    view = view[:held, : held if s.kind == "R" else view.shape[1]]
                views[s.kind, s.name] = view
            yield values[k], views


class _Core:
    """A trained core R between frozen B and A: the forward pass sees B @ R in the place of B.

    Shapes: R (K, R, R), Bᵀ (K, R, d_out) with the scaling in it; (B R)ᵀ = Rᵀ Bᵀ.
    """

    def __init__(self, segments: Sequence[_Segment], frozen: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        self._segments, self._frozen = segments, frozen
        self._compute = {name: torch.zeros_like(b, dtype=dtype) for name, b in frozen.items()}
        self._gradient = {name: torch.zeros_like(b) for name, b in frozen.items()}

    @classmethod
    def of(cls, parameters: CohortParameters) -> _Core:
        """Of the cores among the parameters.

        Raises:
            ValueError: other factors are trained beside them.
        """
        if parameters.trainable != {"R"}:
            raise ValueError(f"A core is trained alone; given {sorted(parameters.trainable)}.")
        segments = [s for s in parameters.segments if s.kind == "R"]
        frozen = {s.name: parameters.frozen_rows("B", s.name, s.shape[0]) for s in segments}
        return cls(segments, frozen, parameters.dtype)

    def spread(self, values: Tensor, active: int) -> None:
        """Sets what the forward pass sees, from the cores in `values` (K', P)."""
        for s in self._segments:
            self._compute[s.name][:active] = s.view(values).transpose(1, 2) @ self._frozen[s.name][:active]
            self._gradient[s.name][:active].zero_()

    def effective(self, active: int) -> dict[tuple[str, str], tuple[Tensor, Tensor]]:
        """("B", module) → what is seen, and where its gradient goes."""
        return {("B", n): (self._compute[n][:active], self._gradient[n][:active]) for n in self._frozen}

    def gather(self, gradient: Tensor, active: int) -> None:
        """Writes the gradient by the cores into `gradient` (K', P): ∂/∂R = Bᵀ (∂/∂(B R))."""
        for s in self._segments:
            pulled = self._frozen[s.name][:active] @ self._gradient[s.name][:active].transpose(1, 2)
            s.view(gradient).copy_(pulled)


def _rounded(rank: int) -> int:
    return -(-rank // RANK_MULTIPLE) * RANK_MULTIPLE


def _selected(task: ClientTask, compact: bool) -> dict[str, np.ndarray]:
    """Module → indices of the rank slices in the buffer: the selected ones, or all where the others are needed too."""
    rank = task.start.rank
    if task.mask is None or not compact:
        return {name: np.arange(rank) for name in task.start.factors}
    return {name: np.flatnonzero(task.mask[name]) for name in task.start.factors}
