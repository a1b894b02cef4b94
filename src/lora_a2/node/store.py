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

from lora_a2.core.types import ClientState
from lora_a2.errors import NodeError
from lora_a2.federation.state_tensors import client_of, client_tensors
from lora_a2.node.logs import log
from lora_a2.system.files import write_atomic

_LORA_ALPHA = "lora_alpha"
_NAME = re.compile(r"round-(\d+)\.kept")


class ClientStore:
    """The states of one client in one run."""

    def __init__(self, folder: Path, run_id: str, partition: int) -> None:
        self.folder = folder / run_id / str(partition)
        self._owner = f"{run_id}/{partition}"

    def before(self, server_round: int) -> ClientState:
        """What was kept last before `server_round`; nothing if there is none.

        Nor is there any where its file is damaged: what is older is not what the client held. The log tells of it.
        """
        number = max((n for n in self._rounds() if n < server_round), default=0)
        if not number:
            return ClientState()
        try:
            return _state(self._content(number), number)
        except (OSError, NodeError) as error:
            log.error("What was kept after round %d is lost: %s", number, error)
            return ClientState()

    def keep(self, state: ClientState) -> None:
        """Replaces what was kept for this state's round; only it and the one before stay."""
        server_round = state.server_round
        tensors = client_tensors(state)
        if state.adapter is not None:
            tensors[_LORA_ALPHA] = np.array(state.adapter.lora_alpha)
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


def _state(data: bytes, server_round: int) -> ClientState:
    tensors = load_tensors(data)
    lora_alpha = tensors.pop(_LORA_ALPHA, None)
    return client_of(tensors, server_round, None if lora_alpha is None else float(lora_alpha))
