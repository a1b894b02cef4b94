"""A server's state and what clients keep, as named tensors: the content of a checkpoint; and the folder of the last two.

round-N.safetensors   the tensors
state.json            the last commit: it names its tensors, with their digest, and holds its own
previous.json         the commit before, for when the last one is damaged
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from lora_a2.core.types import Adapter, Factor, Factors, FloatArray, Layout, ServerState
from lora_a2.errors import RunError
from lora_a2.federation.client import ClientMemory
from lora_a2.system.files import read_sealed, sha256, write_atomic, write_sealed


def state_tensors(state: ServerState) -> dict[str, FloatArray]:
    """A state's arrays by name: `factors/MODULE/A`, `factors/MODULE/B`, `head/NAME`, `base/WEIGHT`, `update/WEIGHT` (a
    difference), `update_A/WEIGHT` and `update_B/WEIGHT` (its factors)."""
    tensors = {}
    for name, f in state.adapter.factors.items():
        tensors[f"factors/{name}/A"] = np.ascontiguousarray(f.A)
        tensors[f"factors/{name}/B"] = np.ascontiguousarray(f.B)
    for name, value in state.adapter.head.items():
        tensors[f"head/{name}"] = np.ascontiguousarray(value)
    for name, value in state.base.items():
        tensors[f"base/{name}"] = np.ascontiguousarray(value)
    for name, change in state.base_update.items():
        if isinstance(change, Factors):
            tensors[f"update_A/{name}"] = np.ascontiguousarray(change.A)
            tensors[f"update_B/{name}"] = np.ascontiguousarray(change.B)
        else:
            tensors[f"update/{name}"] = np.ascontiguousarray(change)
    return tensors


def memory_tensors(memories: Mapping[int, ClientMemory]) -> dict[str, FloatArray]:
    """What clients keep, by name: `private/CLIENT/FACTOR/MODULE`."""
    return {
        f"private/{client}/{factor}/{name}": np.ascontiguousarray(value)
        for client, memory in sorted(memories.items())
        for (factor, name), value in sorted(memory.private.items())
    }


def memories_of(tensors: Mapping[str, FloatArray]) -> dict[int, ClientMemory]:
    """The inverse of `memory_tensors`; other tensors are passed over."""
    found: dict[int, dict[tuple[Factor, str], FloatArray]] = {}
    for key in sorted(tensors):
        kind, _, rest = key.partition("/")
        if kind == "private":
            client, factor, name = rest.split("/", 2)
            found.setdefault(int(client), {})["A" if factor == "A" else "B", name] = tensors[key]
    return {client: ClientMemory(private=private) for client, private in found.items()}


# Checkpoints of before there were methods that need more hold only round, scaling and tensors: hence the defaults.
def state_of(tensors: Mapping[str, FloatArray], layout: Layout, summary: Mapping[str, Any]) -> ServerState:
    """The inverse of `state_tensors`; `summary` is what `state.json` says besides.

    Raises:
        KeyError, ValueError: something is missing, or its shapes are not those of `layout`.
    """

    def named(kind: str) -> dict[str, FloatArray]:
        return {key.partition("/")[2]: v for key, v in sorted(tensors.items()) if key.partition("/")[0] == kind}

    rows, columns = named("update_A"), named("update_B")
    update: dict[str, FloatArray | Factors] = {**named("update")}
    update |= {name: Factors(A=rows[name], B=columns[name]) for name in rows}
    return ServerState(
        server_round=int(summary["server_round"]),
        adapter=_adapter(tensors, layout, float(summary["lora_alpha"])),
        seed=int(summary.get("seed", 0)),
        base=named("base"),
        base_update=update,
        synced=frozenset(int(client) for client in summary.get("synced", [])),
        client_ranks={int(client): int(rank) for client, rank in summary.get("client_ranks", {}).items()},
    )


def _adapter(tensors: Mapping[str, FloatArray], layout: Layout, lora_alpha: float) -> Adapter:
    factors = {m.name: Factors(tensors[f"factors/{m.name}/A"], tensors[f"factors/{m.name}/B"]) for m in layout.modules}
    ranks = {f.rank for f in factors.values()} | {f.B.shape[1] for f in factors.values()}
    shapes = [(factors[m.name].A.shape[1], factors[m.name].B.shape[0]) for m in layout.modules]
    if len(ranks) != 1 or shapes != [(m.d_in, m.d_out) for m in layout.modules]:
        raise ValueError("its shapes are not those of the model")
    return Adapter(factors, lora_alpha, {name: tensors[f"head/{name}"] for name, _ in layout.head})


class Checkpoints:
    """The folder `checkpoint` of a run. A summary is what `state.json` says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._last, self._previous = folder / "state.json", folder / "previous.json"

    def commit(self, state: ServerState, memories: Mapping[int, ClientMemory], beside: Mapping[str, Any]) -> None:
        """Replaces the last commit, which becomes the one before; `beside` is kept in the summary too.

        Raises:
            OSError: a file cannot be written.
        """
        data = save_tensors({**state_tensors(state), **memory_tensors(memories)})
        name = _tensor_file(state.server_round)
        write_atomic(self.folder / name, data)
        if self._last.exists():
            write_atomic(self._previous, self._last.read_bytes())
        summary = {
            "server_round": state.server_round,
            "lora_alpha": state.adapter.lora_alpha,
            "tensors": name,
            "sha256": sha256(data),
            "seed": state.seed,
            "synced": sorted(state.synced),
            "client_ranks": {str(client): rank for client, rank in sorted(state.client_ranks.items())},
        }
        write_sealed(self._last, {**summary, **beside})
        self.tidy(state.server_round)

    def last(self) -> dict[str, Any] | None:
        """The last summary; None before the first commit.

        Raises:
            RunError: it is damaged.
        """
        if not self._last.exists() and not self._previous.exists():
            return None
        return read_sealed(self._last)

    def previous(self) -> dict[str, Any] | None:
        """The summary before; None where there was none.

        Raises:
            RunError: it is damaged.
        """
        return read_sealed(self._previous) if self._previous.exists() else None

    def go_back(self) -> None:
        """Makes the commit before the last one the last."""
        write_atomic(self._last, self._previous.read_bytes())

    def state(self, summary: Mapping[str, Any], layout: Layout) -> ServerState:
        """The state of a summary.

        Raises:
            RunError: it is damaged, or belongs to another model.
        """
        try:
            return state_of(self.tensors(summary), layout, summary)
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"The checkpoint in {self.folder} is damaged: {error}.") from error

    def tensors(self, summary: Mapping[str, Any]) -> dict[str, FloatArray]:
        """The tensors of a summary.

        Raises:
            RunError: they are not what they were.
        """
        try:
            return load_tensors(self._read(summary))
        except SafetensorError as error:
            raise RunError(f"The checkpoint in {self.folder} is damaged: {error}.") from error

    def _read(self, summary: Mapping[str, Any]) -> bytes:
        path = self.folder / str(summary["tensors"])
        try:
            data = path.read_bytes()
        except OSError as error:
            raise RunError(f"{path} is damaged: it cannot be read: {error.strerror}.") from error
        if sha256(data) != summary["sha256"]:
            raise RunError(f"{path} is damaged: its sha256 is not the recorded one.")
        return data

    def tidy(self, server_round: int) -> None:
        """Removes all but the checkpoints of this round and of the one before."""
        kept = {self._last.name, self._previous.name, _tensor_file(server_round), _tensor_file(server_round - 1)}
        for other in self.folder.iterdir():
            if other.name not in kept:
                other.unlink()


def _tensor_file(server_round: int) -> str:
    return f"round-{server_round:05d}.safetensors"
