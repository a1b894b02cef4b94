"""What a client keeps from round to round, on its own disk.

    FOLDER/RUN/PARTITION/round-N.safetensors    what it held after round N

The last two rounds are kept: a server that was stopped in the middle of round N asks for it again, and the client then
starts again from what it held before.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from lora_a2.clients import ClientMemory
from lora_a2.errors import NodeError
from lora_a2.files import write_atomic
from lora_a2.types import Factor, FloatArray

_NAME = re.compile(r"round-(\d+)\.safetensors")


class ClientStore:
    """The memories of one client in one run."""

    def __init__(self, folder: Path, run_id: str, partition: int) -> None:
        self.folder = folder / run_id / str(partition)

    def before(self, server_round: int) -> tuple[int, ClientMemory]:
        """The last round before `server_round` that was kept, and its memory; 0 and nothing where there is none.

        Raises:
            NodeError: the file is damaged.
        """
        number = max((n for n in self._rounds() if n < server_round), default=0)
        if not number:
            return 0, ClientMemory()
        path = self._path(number)
        try:
            tensors = load_tensors(path.read_bytes())
        except (OSError, SafetensorError) as error:
            raise NodeError(
                f"{path} is damaged ({error}): remove it, and the client starts anew in this run."
            ) from None
        base: dict[str, FloatArray] = {}
        private: dict[tuple[Factor, str], FloatArray] = {}
        for key, values in sorted(tensors.items()):
            kind, _, name = key.partition("/")
            if kind == "base":
                base[name] = values
            else:
                private["A" if kind == "A" else "B", name] = values
        return number, ClientMemory(base, private)

    def keep(self, server_round: int, memory: ClientMemory) -> None:
        """Replaces what was kept for this round; only it and the one before stay."""
        tensors = {f"base/{name}": np.ascontiguousarray(values) for name, values in memory.base.items()}
        tensors |= {f"{factor}/{name}": np.ascontiguousarray(v) for (factor, name), v in memory.private.items()}
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomic(self._path(server_round), save_tensors(tensors))
        earlier = max((n for n in self._rounds() if n < server_round), default=0)
        for number in self._rounds() - {server_round, earlier}:
            self._path(number).unlink()

    def _rounds(self) -> set[int]:
        found = [_NAME.fullmatch(path.name) for path in self.folder.iterdir()] if self.folder.is_dir() else []
        return {int(match[1]) for match in found if match}

    def _path(self, server_round: int) -> Path:
        return self.folder / f"round-{server_round:05d}.safetensors"
