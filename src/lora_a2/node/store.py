"""What a client keeps from round to round, on its own disk.

    FOLDER/RUN/PARTITION/round-N.kept    what it held after round N: a SHA-256 digest, then safetensors

The digest covers run, partition and round too, so that a file is what its name says or counts as lost. The last two rounds
are kept: a server that was stopped in the middle of round N asks for it again, and the client then starts again from what
it held before.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from lora_a2.core.types import Factor, FloatArray
from lora_a2.errors import NodeError
from lora_a2.federation.client import ClientMemory
from lora_a2.node.logs import log
from lora_a2.system.files import write_atomic

_NAME = re.compile(r"round-(\d+)\.kept")


class ClientStore:
    """The memories of one client in one run."""

    def __init__(self, folder: Path, run_id: str, partition: int) -> None:
        self.folder = folder / run_id / str(partition)
        self._owner = f"{run_id}/{partition}"

    def before(self, server_round: int) -> tuple[int, ClientMemory]:
        """The last round before `server_round` that was kept, and its memory; 0 and nothing where there is none.

        Nor is there one where its file is damaged: what is older is not what the client held. The log tells of it.
        """
        number = max((n for n in self._rounds() if n < server_round), default=0)
        if not number:
            return 0, ClientMemory()
        try:
            return number, _memory(self._content(number))
        except (OSError, NodeError) as error:
            log.error("What was kept after round %d is lost: %s", number, error)
            return 0, ClientMemory()

    def keep(self, server_round: int, memory: ClientMemory) -> None:
        """Replaces what was kept for this round; only it and the one before stay."""
        tensors = {f"base/{name}": np.ascontiguousarray(values) for name, values in memory.base.items()}
        tensors |= {f"{factor}/{name}": np.ascontiguousarray(v) for (factor, name), v in memory.private.items()}
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        content = save_tensors(tensors)
        write_atomic(self._path(server_round), self._digest(server_round, content) + content)
        earlier = max((n for n in self._rounds() if n < server_round), default=0)
        for number in self._rounds() - {server_round, earlier}:
            self._path(number).unlink()

    def _rounds(self) -> set[int]:
        found = [_NAME.fullmatch(path.name) for path in self.folder.iterdir()] if self.folder.is_dir() else []
        return {int(match[1]) for match in found if match}

    def _path(self, server_round: int) -> Path:
        return self.folder / f"round-{server_round:05d}.kept"

    def _content(self, server_round: int) -> bytes:
        data = self._path(server_round).read_bytes()
        digest, content = data[: hashlib.sha256().digest_size], data[hashlib.sha256().digest_size :]
        if digest != self._digest(server_round, content):
            raise NodeError(f"{self._path(server_round)} is damaged: its digest is not that of its content.")
        return content

    def _digest(self, server_round: int, content: bytes) -> bytes:
        digest = hashlib.sha256(f"{self._owner}/{server_round}\0".encode())
        digest.update(content)
        return digest.digest()


def _memory(data: bytes) -> ClientMemory:
    base: dict[str, FloatArray] = {}
    private: dict[tuple[Factor, str], FloatArray] = {}
    for key, values in sorted(load_tensors(data).items()):
        kind, _, name = key.partition("/")
        if kind == "base":
            base[name] = values
        else:
            private["A" if kind == "A" else "B", name] = values
    return ClientMemory(base, private)
