"""What is recorded of a round: a line of `rounds.jsonl`, the ledger."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lora_a2.core.shown import count, shown
from lora_a2.errors import RunError
from lora_a2.system.journal import Journal

LEDGER_FILE = "rounds.jsonl"
"""In a run directory."""


@dataclass(frozen=True)
class ClientRecord:
    """What one client did in a round. `selected`: module → rank slices uploaded (modules with none left out).

    `update_norm` is how far it moved (`bounds.update_norm`).
    """

    id: int
    num_examples: int
    rank_budget: int
    uploaded_bytes: int
    uploaded_parameters: int
    downloaded_bytes: int
    downloaded_parameters: int
    train_loss: float
    selected: dict[str, int]
    update_norm: float = 0.0


@dataclass(frozen=True)
class RoundRecord:
    """A line of `rounds.jsonl`. Bytes are as encoded; sums are over the round's cohort.

    `evaluation_bytes` were downloaded for evaluation if the clients are. `metrics` holds the evaluation, empty in rounds without one; `seconds` the time of each phase.
    """

    server_round: int
    trainable: list[str]
    clients: list[ClientRecord]
    uploaded_bytes: int
    uploaded_parameters: int
    downloaded_bytes: int
    downloaded_parameters: int
    train_loss: float
    evaluation_bytes: int = 0
    refused: dict[int, str] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        return shown(
            self,
            f"server_round={self.server_round}",
            count(len(self.clients), "client"),
            f"train_loss={self.train_loss:.4g}",
            *(f"{name}={value:.4g}" for name, value in [*self.metrics.items()][:3] if isinstance(value, float)),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for `json.dumps`."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> RoundRecord:
        """The inverse of `to_json`."""
        clients = [ClientRecord(**c) for c in values["clients"]]
        refused = {int(k): v for k, v in values["refused"].items()}
        return cls(**{**values, "clients": clients, "refused": refused})


def read_ledger(path: Path, count: int) -> list[RoundRecord]:
    """The first `count` lines of the ledger at `path`: how many count is said by the run's checkpoint.

    Raises:
        RunError: one of them is not what it was, or is missing.
    """
    lines = Journal(path).read(count)
    try:
        records = [RoundRecord.from_json(json.loads(line)) for line in lines]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path} is damaged: {error}.") from error
    if [r.server_round for r in records] != list(range(1, count + 1)):
        raise RunError(f"{path} is damaged: expected a line for each of the rounds 1 to {count}.")
    return records
