"""The workload that ours and the peers share: a folder with the model's path, the clients' token ids in order, and the start.

NumPy only: peers read it in their own environment, where lora_a2 is not installed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

Arrays = Mapping[str, np.ndarray]
"""An adapter's arrays: "A/module" (r, d_in) and "B/module" (d_out, r), float32."""


@dataclass(frozen=True)
class Settings:
    """How a client trains, the same for ours and every peer. `model` is a folder; `pooling` is "mean" or "cls"."""

    model: str
    modules: tuple[str, ...]
    rank: int
    lora_alpha: float
    pooling: str
    pad_token_id: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    device: str


@dataclass(frozen=True)
class ClientData:
    """One client's examples in the order of its epoch: token ids (length,) int64 each, labels (n,) int64."""

    sentences: tuple[np.ndarray, ...]
    labels: np.ndarray


@dataclass(frozen=True)
class Workload:
    """One round, the same for every peer: settings, clients, the adapter that all start from, and the frozen head."""

    settings: Settings
    clients: tuple[ClientData, ...]
    start: Arrays
    head: Arrays

    @property
    def tokens(self) -> int:
        """Tokens of one epoch of all clients, padding not counted."""
        return sum(len(s) for c in self.clients for s in c.sentences)


def write_workload(folder: Path, workload: Workload) -> None:
    """Writes a workload for `read_workload`."""
    (folder / "settings.json").write_text(json.dumps(asdict(workload.settings)))
    arrays: dict[str, np.ndarray] = {}
    for k, client in enumerate(workload.clients):
        arrays[f"{k}/tokens"] = np.concatenate(client.sentences)
        arrays[f"{k}/lengths"] = np.array([len(s) for s in client.sentences])
        arrays[f"{k}/labels"] = client.labels
    np.savez(folder / "clients.npz", **arrays)
    np.savez(folder / "start.npz", **workload.start)
    np.savez(folder / "head.npz", **workload.head)


def read_workload(folder: Path) -> Workload:
    """The inverse of `write_workload`."""
    settings = json.loads((folder / "settings.json").read_text())
    with np.load(folder / "clients.npz") as arrays:
        count = sum(name.endswith("/labels") for name in arrays)
        clients = tuple(
            ClientData(
                tuple(np.split(arrays[f"{k}/tokens"], np.cumsum(arrays[f"{k}/lengths"])[:-1])), arrays[f"{k}/labels"]
            )
            for k in range(count)
        )
    settings["modules"] = tuple(settings["modules"])
    return Workload(Settings(**settings), clients, read_arrays(folder / "start.npz"), read_arrays(folder / "head.npz"))


def read_arrays(path: Path) -> Arrays:
    """All arrays of an .npz file."""
    with np.load(path) as arrays:
        return dict(arrays)


def padded(sentences: Sequence[np.ndarray], pad_token_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and attention mask (n, longest), padded on the right."""
    longest = max(len(s) for s in sentences)
    ids = np.full((len(sentences), longest), pad_token_id, np.int64)
    mask = np.zeros_like(ids)
    for row, s in enumerate(sentences):
        ids[row, : len(s)], mask[row, : len(s)] = s, 1
    return ids, mask
