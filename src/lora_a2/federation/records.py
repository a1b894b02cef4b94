"""What is recorded of a round: a line of `rounds.jsonl`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class ClientRecord:
    """What one client did in a round. `selected`: module → rank slices uploaded (modules with none left out).

    `update_norm` is how far it moved (`bounds.update_norm`); None in ledgers of earlier releases.
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
    update_norm: float | None = None


@dataclass(frozen=True)
class RoundRecord:
    """A line of `rounds.jsonl`. Bytes are as encoded; sums are over the round's cohort.

    `evaluation_bytes` were downloaded for evaluation where the clients are. `metrics` holds the evaluation, empty in rounds without one; `seconds` the time of each phase.
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

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for `json.dumps`."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> RoundRecord:
        """The inverse of `to_json`."""
        clients = [ClientRecord(**c) for c in values["clients"]]
        refused = {int(k): v for k, v in values["refused"].items()}
        return cls(**{**values, "clients": clients, "refused": refused})
