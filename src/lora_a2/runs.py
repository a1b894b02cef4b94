"""The run directory: configuration, environment, ledger and checkpoints; written so that a kill loses one round at most.

    config.toml       the resolved configuration; enough to run it again
    environment.json  versions, machine, fingerprints of data and model
    rounds.jsonl      a line a round
    clients.json      who holds what, and
    analysis.jsonl    a line a round, where the run records for analysis (`analysis.record`)
    checkpoint/       round-N.safetensors and state.json, which names it; state.json is the commit
    adapter/          the result, once the run is complete
    personal/N/       client N's own model, for methods that make such

A round is committed by replacing `checkpoint/state.json`. Its ledger line is written before, so on resuming the ledger
holds at least the committed rounds; what it holds beyond them is cut off.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from lora_a2.analysis.record import ANALYSIS_FILE, CLIENTS_FILE
from lora_a2.checkpoints import memories_of, memory_tensors, state_of, state_tensors
from lora_a2.clients import ClientMemory
from lora_a2.errors import RunError
from lora_a2.files import write_atomic
from lora_a2.rounds import RoundRecord
from lora_a2.types import Layout, ServerState


class RunDirectory:
    """A run's directory at `path`; see the module's docstring for what is in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ledger = path / "rounds.jsonl"
        self.analysis = path / ANALYSIS_FILE
        self.checkpoint = path / "checkpoint"
        self.adapter = path / "adapter"
        self.personal = path / "personal"

    @staticmethod
    def check_free(path: Path) -> None:
        """Refuses a path where something is already; what a kill inside `create` leaves behind is nothing.

        Raises:
            RunError: there is.
        """
        if path.exists() and not (path.is_dir() and _barely_begun(path)):
            kind = "another run" if (path / "config.toml").exists() else "something else"
            raise RunError(
                f"Output directory {path} already holds {kind}: choose another --output-dir"
                + (f", or continue that run with 'lora-a2 resume {path}'." if kind == "another run" else ".")
            )

    @classmethod
    def create(
        cls, path: Path, config: str, environment: Mapping[str, Any], clients: Mapping[str, Any] | None = None
    ) -> RunDirectory:
        """A new directory with its configuration and environment, and `clients.json` if given.

        Raises:
            RunError: something is there already, or it cannot be written.
        """
        cls.check_free(path)
        run = cls(path)
        try:
            run.checkpoint.mkdir(parents=True, exist_ok=True)
            write_atomic(path / "environment.json", _json(environment))
            if clients is not None:
                write_atomic(path / CLIENTS_FILE, (json.dumps(clients, ensure_ascii=False) + "\n").encode())
            write_atomic(path / "config.toml", config.encode())
        except OSError as error:
            raise RunError(f"Output directory {path} cannot be written: {error.strerror}.") from error
        return run

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """An existing run directory.

        Raises:
            RunError: there is none at `path`.
        """
        for name in ("config.toml", "environment.json"):
            if not (path / name).is_file():
                what = "is not a run directory" if path.is_dir() else "does not exist"
                raise RunError(f"{path} {what}: expected {path / name}.")
        return cls(path)

    def require_finished(self) -> None:
        """Refuses a run that has no adapter yet.

        Raises:
            RunError: it has none.
        """
        if not (self.adapter / "adapter_config.json").is_file():
            raise RunError(f"{self.path} is not finished: continue it with 'lora-a2 resume {self.path}'.")

    def environment(self) -> dict[str, Any]:
        """What `environment.json` says; `data_sha256` is among it.

        Raises:
            RunError: it is damaged.
        """
        values = read_json_object(self.path / "environment.json")
        if not isinstance(values.get("data_sha256"), str):
            raise RunError(f"{self.path / 'environment.json'} is damaged: expected data_sha256 in it.")
        return values

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps a second process from writing to the same run.

        Raises:
            RunError: another process holds it.
        """
        descriptor = os.open(self.path / "config.toml", os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(f"{self.path} is in use by another process: wait for it, or stop it.") from error
        else:
            yield
        finally:
            os.close(descriptor)

    def commit(
        self,
        state: ServerState,
        record: RoundRecord,
        memories: Mapping[int, ClientMemory] | None = None,
        analysis: Mapping[str, Any] | None = None,
    ) -> None:
        """Writes a finished round: the lines of ledger and analysis, the tensors, then the state that makes them count."""
        if analysis is not None:
            _append(self.analysis, analysis)
        _append(self.ledger, record.to_json())
        data = save_tensors({**state_tensors(state), **memory_tensors(memories or {})})
        name = _tensor_file(state.server_round)
        write_atomic(self.checkpoint / name, data)
        summary = {
            "server_round": state.server_round,
            "lora_alpha": state.adapter.lora_alpha,
            "tensors": name,
            "sha256": hashlib.sha256(data).hexdigest(),
            "seed": state.seed,
            "synced": sorted(state.synced),
            "client_ranks": {str(client): rank for client, rank in sorted(state.client_ranks.items())},
        }
        write_atomic(self.checkpoint / "state.json", _json(summary))
        self._drop_other_checkpoints(state.server_round)

    def load_state(self, layout: Layout) -> ServerState | None:
        """The last committed state; None where no round was finished.

        Raises:
            RunError: the checkpoint is damaged or belongs to another model.
        """
        commit = self.checkpoint / "state.json"
        if not commit.exists():
            return None
        summary = read_json_object(commit)
        try:
            data = (self.checkpoint / summary["tensors"]).read_bytes()
            if hashlib.sha256(data).hexdigest() != summary["sha256"]:
                raise RunError(
                    f"{self.checkpoint / summary['tensors']} is damaged: its sha256 is not the recorded one."
                )
            return state_of(load_tensors(data), layout, summary)
        except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
            raise RunError(f"The checkpoint in {self.checkpoint} is damaged: {error}.") from error

    def load_memories(self) -> dict[int, ClientMemory]:
        """What the clients kept at the last committed round; call after `load_state`, which checks the file."""
        commit = self.checkpoint / "state.json"
        if not commit.exists():
            return {}
        tensors = load_tensors((self.checkpoint / read_json_object(commit)["tensors"]).read_bytes())
        return memories_of(tensors)

    def load_records(self, server_round: int) -> list[RoundRecord]:
        """The records of the first `server_round` rounds.

        Raises:
            RunError: the ledger is damaged.
        """
        lines = self.ledger.read_bytes().split(b"\n")[:server_round] if self.ledger.exists() else []
        try:
            records = [RoundRecord.from_json(json.loads(line)) for line in lines]
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{self.ledger} is damaged: {error}.") from error
        if [r.server_round for r in records] != list(range(1, server_round + 1)):
            raise RunError(f"{self.ledger} is damaged: expected a line for each of the rounds 1 to {server_round}.")
        return records

    def discard_uncommitted(self, server_round: int) -> None:
        """Drops what a kill left beside the first `server_round` rounds: later or broken ledger lines, stray files."""
        self._drop_other_checkpoints(server_round)
        for path in (self.ledger, self.analysis):
            if path.exists():
                lines = path.read_bytes().splitlines()[:server_round]
                write_atomic(path, b"".join(line + b"\n" for line in lines))

    def _drop_other_checkpoints(self, server_round: int) -> None:
        for other in self.checkpoint.iterdir():
            if other.name not in (_tensor_file(server_round), "state.json"):
                other.unlink()


def _append(path: Path, values: Mapping[str, Any]) -> None:
    with path.open("ab") as file:
        file.write(json.dumps(values).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _tensor_file(server_round: int) -> str:
    return f"round-{server_round:05d}.safetensors"


def _barely_begun(path: Path) -> bool:
    """Whether a directory is empty, or holds only what `create` writes before the configuration."""
    early = {"checkpoint", *(f for name in ("environment.json", CLIENTS_FILE) for f in (name, f".{name}.partial"))}
    early.add(".config.toml.partial")
    return {p.name for p in path.iterdir()} <= early and not any(path.glob("checkpoint/*"))


def _json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        RunError: there is no such file, or it holds something else.
    """
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}.") from error
    if not isinstance(values, dict):
        raise RunError(f"{path} is damaged: expected a JSON object.")
    return values
