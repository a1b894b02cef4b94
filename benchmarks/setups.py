"""The set-ups of the figures: a model with its clients and plan, and the same as a folder for the peers."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

import lora_a2
from exchange import Arrays, write_workload
from lora_a2.federation.loop import Plan
from lora_a2.federation.population import Client
from lora_a2.model.backbone import load_backbone
from ours import results
from workload import load_clients, plan_of, random_roberta, workload_of

GATE = 1e-3
"""The largest relative difference in any factor's norm, in float32, between ours and a peer after a round."""
GPU_GATE = 5e-3
"""The same where a GPU computes, which adds up in another order from kernel to kernel: 1.1e-3 was seen on an H200."""


class GateError(RuntimeError):
    """Ours and a peer do not compute the same, so their times cannot be compared."""


@dataclass
class Setup:
    """FL+LoRA of rank 8 on some clients, one local epoch; `folder` is the model's folder for the peers."""

    data: lora_a2.data.labelled.LabelledData
    model: lora_a2.Model
    source: str
    clients: tuple[Client, ...]
    plan: Plan
    folder: str
    gates: dict[str, float] = field(default_factory=dict)
    gate: float = GATE

    @cached_property
    def place(self) -> Path:
        """The exchange folder, removed when this process ends."""
        self._temporary = tempfile.TemporaryDirectory(prefix="lora-a2-bench-")
        place = Path(self._temporary.name)
        write_workload(place, workload_of(self.model, self.folder, self.clients, self.plan))
        return place

    @property
    def tokens(self) -> int:
        """Tokens of a round."""
        return int(sum(len(s) for c in self.clients for s in c.train.input_ids))

    @cached_property
    def exact(self) -> tuple[Arrays, list[Arrays]]:
        """Our results in float32: the adapter after a round, and each client's."""
        device = str(self.model.network.device)
        model = lora_a2.load_model(self.source, labels=self.data.label_names, dtype="float32", device=device)
        return results(model, self.clients, plan_of(model, self.clients))

    def check(self, name: str, theirs: Arrays) -> None:
        """Compares a peer's float32 round with ours: all clients' adapters if it returns them, otherwise the aggregate.

        Raises:
            GateError: they differ by more than `gate`.
        """
        together, each = self.exact
        if f"0/{next(iter(together))}" in theirs:
            pairs = [(own[n], theirs[f"{k}/{n}"]) for k, own in enumerate(each) for n in own]
        else:
            pairs = [(together[n], theirs[n]) for n in together]
        self.gates[name] = worst = max(difference(a, b) for a, b in pairs)
        if not worst <= self.gate:
            raise GateError(
                f"ours and {name} differ by {worst:.1e} after a round (limit {self.gate:.0e}): nothing is timed."
            )


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """‖ours − theirs‖ / ‖theirs‖."""
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


@dataclass(frozen=True)
class Size:
    """Number of clients, examples of each (None: all), device, and clients in one forward and backward."""

    clients: int
    examples: int | None
    device: str
    clients_per_pass: int = 1


def minilm(data: Any, size: Size) -> Setup:
    """The pre-trained MiniLM-L6 from a package."""
    source = "all-MiniLM-L6-v2"
    return _setup(data, source, load_backbone(source).module.name_or_path, size)


def roberta(data: Any, tokenizer: Path, folder: Path, size: Size) -> Setup:
    """RoBERTa-base's shape with random weights, created in `folder`."""
    source = random_roberta(folder, tokenizer)
    return _setup(data, source, source, size)


def _setup(data: Any, source: str, folder: str, size: Size) -> Setup:
    model = lora_a2.load_model(source, labels=data.label_names, device=size.device)
    clients = load_clients(data, model, size.clients, size.examples)
    plan = plan_of(model, clients, clients_per_pass=size.clients_per_pass)
    return Setup(data, model, source, clients, plan, folder, gate=GATE if size.device == "cpu" else GPU_GATE)
