"""A run directory read back for analysis, and the two files that a run writes for it.

    clients.json     who holds what: label counts by client, the adapter's modules
    analysis.jsonl   a line a round: selected rank slices, similarity of the updates, discordance

Both are there unless the run had `record-analysis` off. A server of nodes does not ask for their labels: there `clients` is
empty, as where examples have no labels. The rest of the record is read as plain values.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lora_a2.core.types import BoolArray, Layout, Mask, ModuleShape
from lora_a2.errors import RunError
from lora_a2.federation.records import LEDGER_FILE, RoundRecord, read_ledger
from lora_a2.system.files import check, read_sealed
from lora_a2.system.journal import Journal
from lora_a2.tasks.base import Task
from lora_a2.tasks.registry import task_of

FloatArray64 = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

CLIENTS_FILE, ANALYSIS_FILE = "clients.json", "analysis.jsonl"


@dataclass(frozen=True)
class ClientInfo:
    """A client and how many examples of each class it holds: `train` and `test` are (C,)."""

    id: int
    name: str
    train: IntArray
    test: IntArray


@dataclass(frozen=True)
class RoundAnalysis:
    """A line of `analysis.jsonl`. Effective weights are base + lora_alpha / r · B @ A, norms are Frobenius norms over all modules.

    Attributes:
        server_round: 1-based.
        clients: ids of those whose reply counted, ascending.
        rank: of the adapter that they hold; None if nothing was selected.
        masks: for each client its selected rank slices, a bitmap over (module, rank) in hex; empty if nothing was selected.
        norms: of the first clients' changes of the effective weights, at most `recording.MAX_PAIRED` of them; empty if
            the server does not see the whole change.
        cosines: of each pair of these, the upper triangle row by row; None if a client changed nothing.
        discordance: ‖mean of the clients' effective weights − the server's new effective weights‖; None if the server
            does not see the clients' weights.
        change: ‖the server's new effective weights − those before the round‖; None likewise.
    """

    server_round: int
    clients: tuple[int, ...]
    rank: int | None
    masks: tuple[str, ...]
    norms: tuple[float, ...]
    cosines: tuple[float | None, ...]
    discordance: float | None
    change: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for `json.dumps`."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RoundAnalysis:
        """The inverse of `to_json`."""
        tuples = {key: tuple(values[key]) for key in ("clients", "masks", "norms", "cosines")}
        return cls(**{**values, **tuples})

    def selected(self, modules: Sequence[ModuleShape]) -> dict[int, Mask]:
        """Client id → its mask, module → bool (r,); empty if nothing was selected."""
        if self.rank is None:
            return {}
        unpacked = (unpack_mask(text, len(modules) * self.rank) for text in self.masks)
        rows = (bits.reshape(len(modules), self.rank) for bits in unpacked)
        return {
            client: {m.name: row for m, row in zip(modules, mask, strict=True)}
            for client, mask in zip(self.clients, rows, strict=True)
        }

    def cosine_matrix(self) -> tuple[tuple[int, ...], FloatArray64]:
        """Ids of the K paired clients, and (K, K) cosines of their updates; NaN where one changed nothing."""
        size = len(self.norms)
        matrix = np.eye(size)
        upper = np.triu_indices(size, 1)
        matrix[upper] = np.array(self.cosines, np.float64)  # None becomes NaN
        matrix.T[upper] = matrix[upper]
        return self.clients[:size], matrix


def pack_mask(mask: Mask, layout: Layout) -> str:
    """A mask as hex digits: one bit a rank slice, modules in the layout's order."""
    return np.packbits(np.concatenate([mask[m.name] for m in layout.modules])).tobytes().hex()


def unpack_mask(text: str, size: int) -> BoolArray:
    """The `size` bits of `pack_mask`."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=size).astype(np.bool_)


def clients_json(
    layout: Layout, label_names: Sequence[str], clients: Iterable[tuple[int, str, IntArray, IntArray]]
) -> dict[str, Any]:
    """The content of `clients.json`, for clients (id, name, training labels, test labels)."""

    def counts(labels: IntArray) -> dict[str, int]:
        present, sizes = np.unique(labels, return_counts=True)
        return {str(label): int(size) for label, size in zip(present, sizes, strict=True)}

    return {
        "label_names": list(label_names),
        "modules": [[m.name, m.d_out, m.d_in] for m in layout.modules],
        "clients": [{"id": i, "name": n, "train": counts(a), "test": counts(b)} for i, n, a, b in clients],
    }


@dataclass(frozen=True)
class RunRecord:
    """A run directory: `config` by kebab-case key, `rounds` the committed ones.

    `clients`, `analyses`, `modules` and `label_names` are empty if the run did not record them, `clients` also where
    the clients were nodes, or have no labels.
    """

    path: Path
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    rounds: tuple[RoundRecord, ...]
    label_names: tuple[str, ...]
    modules: tuple[ModuleShape, ...]
    clients: tuple[ClientInfo, ...]
    analyses: tuple[RoundAnalysis, ...]

    @property
    def method(self) -> str:
        """The method's name."""
        return str(self.config["method"])

    @cached_property
    def task(self) -> Task:
        """What the model is fine-tuned for.

        Raises:
            ConfigError: the run is of another release, with a task that is not known.
        """
        return task_of((record.metrics for record in self.rounds), self.config)

    @cached_property
    def label_counts(self) -> IntArray:
        """(K, C) training examples of each class at each client, clients in order of their id."""
        rows = [client.train for client in sorted(self.clients, key=lambda c: c.id)]
        return np.asarray(rows, np.int64).reshape(len(rows), len(self.label_names))


def load_run(path: str | Path) -> RunRecord:
    """Reads a run directory, finished or not; what was not committed is left out. Digests are compared.

    Raises:
        RunError: there is none, or it is damaged.
    """
    path = Path(path)
    if not (path / "config.toml").is_file():
        raise RunError(f"{path} is not a run directory: expected {path / 'config.toml'}.")
    check(path)
    done = _committed(path)
    try:
        config = tomllib.loads((path / "config.toml").read_text(encoding="utf-8"))
        environment = json.loads((path / "environment.json").read_bytes())
        described = _described(path / CLIENTS_FILE)
        lines = [json.loads(line) for line in Journal(path / ANALYSIS_FILE).read(done["analysis"])]
        return RunRecord(
            path=path,
            config=config,
            environment=environment,
            rounds=tuple(read_ledger(path / LEDGER_FILE, done["rounds"])),
            label_names=tuple(described["label_names"]),
            modules=tuple(ModuleShape(*row) for row in described["modules"]),
            clients=tuple(_client(row, len(described["label_names"])) for row in described["clients"]),
            analyses=tuple(RoundAnalysis.from_json(line) for line in lines),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"The run {path} is damaged: {error}.") from error


def runs_in(folder: Path) -> list[Path]:
    """The run directory itself, or those of a sweep or a comparison, in the order of its plan, that have begun.

    Raises:
        RunError: it is none of these, or nothing in it has begun.
    """
    for place in (folder / "runs" / "plan.json", folder / "plan.json", folder / "compare.json"):
        if place.is_file() and not (folder / "config.toml").is_file():
            found = [place.parent / name for name in json.loads(place.read_bytes())]
            begun = [path for path in found if (path / "checkpoint" / "state.json").is_file()]
            if not begun:
                raise RunError(f"{folder} has no run with a finished round yet.")
            return begun
    return [folder]


def _committed(path: Path) -> dict[str, int]:
    """How many lines of ledger and analysis count."""
    state = path / "checkpoint" / "state.json"
    lines: dict[str, int] = read_sealed(state)["lines"] if state.exists() else {"rounds": 0, "analysis": 0}
    return lines


def _described(path: Path) -> dict[str, Any]:
    values = json.loads(path.read_bytes()) if path.exists() else {"label_names": [], "modules": [], "clients": []}
    assert isinstance(values, dict)
    return values


def _client(row: Mapping[str, Any], num_classes: int) -> ClientInfo:
    def counts(given: Mapping[str, int]) -> IntArray:
        result = np.zeros(num_classes, np.int64)
        for label, size in given.items():
            result[int(label)] = size
        return result

    return ClientInfo(int(row["id"]), str(row["name"]), counts(row["train"]), counts(row["test"]))
