"""A server's state and what clients keep, as named tensors: the content of a checkpoint; and the folder of the last two.

round-N.safetensors   the tensors
state.json            the last commit: it names its tensors, with their digest, and holds its own
previous.json         the commit before, for when the last one is damaged

Where the best round is kept too, a summary has that round's summary in it, as "best", and its tensors stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from lora_a2.core.tensors import Array
from lora_a2.core.types import FROM_SEED, Adapter, ClientState, Layout, ServerState
from lora_a2.errors import RunError
from lora_a2.federation.state_tensors import client_of, client_tensors, server_numbers, server_of, server_tensors
from lora_a2.system.files import read_sealed, sha256, write_atomic, write_sealed


def client_arrays(clients: Mapping[int, ClientState]) -> dict[str, Array]:
    """What clients keep, by name: `client/NUMBER/…`."""
    return {
        f"client/{client}/{key}": values
        for client, state in sorted(clients.items())
        for key, values in client_tensors(state).items()
    }


def clients_of(arrays: Mapping[str, Array]) -> dict[int, ClientState]:
    """The inverse of `client_arrays`; other tensors are passed over."""
    found: dict[int, dict[str, Array]] = {}
    for key, values in sorted(arrays.items()):
        if key.startswith("client/"):
            _, client, rest = key.split("/", 2)
            found.setdefault(int(client), {})[rest] = values
    return {client: client_of(held, FROM_SEED, None) for client, held in found.items()}


def fitted(adapter: Adapter, layout: Layout) -> Adapter:
    """An adapter in the layout's order, in which random numbers are drawn.

    Raises:
        ValueError: it is.
    """
    shapes = {m.name: {x: m.shape(x, adapter.rank) for x in adapter.kinds} for m in layout.modules}
    if {n: {x: f.get(x).shape for x in f.kinds} for n, f in adapter.factors.items()} != shapes:
        raise ValueError("its shapes are not those of the model")
    if {n: v.shape for n, v in adapter.head.items()} != dict(layout.head):
        raise ValueError("its head is not that of the model")
    factors = {m.name: adapter.factors[m.name] for m in layout.modules}
    return replace(adapter, factors=factors, head={name: adapter.head[name] for name, _ in layout.head})


class Checkpoints:
    """The folder `checkpoint` of a run. A summary is what `state.json` says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._last, self._previous = folder / "state.json", folder / "previous.json"

    def commit(
        self,
        state: ServerState,
        clients: Mapping[int, ClientState],
        beside: Mapping[str, Any],
        best: bool | None = None,
    ) -> None:
        """Replaces the last commit, which becomes the one before; `beside` is kept in the summary too.

        `best`: whether this is the best round so far; None: the best one is not kept.

        Raises:
            OSError: a file cannot be written.
            RunError: the last commit is damaged, and says which was the best.
        """
        data = save_tensors({**server_tensors(state), **client_arrays(clients)})
        name = _tensor_file(state.server_round)
        write_atomic(self.folder / name, data)
        if self._last.exists():
            write_atomic(self._previous, self._last.read_bytes())
        summary = {**server_numbers(state), "tensors": name, "sha256": sha256(data)}
        kept = best_of(self.last()) if best is False else None
        beside = {**beside, **({"best": summary} if best else {} if kept is None else {"best": kept})}
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
        """The summary before; None if there was none.

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
            state = server_of(self.tensors(summary), summary)
            return replace(state, adapter=fitted(state.adapter, layout))
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"The checkpoint in {self.folder} is damaged: {error}.") from error

    def tensors(self, summary: Mapping[str, Any]) -> dict[str, Array]:
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
        """Removes all but the checkpoints of this round and of the one before, and of the best round if that is kept."""
        kept = {self._last.name, self._previous.name, _tensor_file(server_round), _tensor_file(server_round - 1)}
        for read in (self.last, self.previous):
            with suppress(RunError):  # of a damaged one nothing is needed
                if (best := best_of(read())) is not None:
                    kept.add(str(best["tensors"]))
        for other in self.folder.iterdir():
            if other.name not in kept:
                other.unlink()


def best_of(summary: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The summary of the best round, if it is kept and there was one."""
    return None if summary is None else summary.get("best")


def _tensor_file(server_round: int) -> str:
    return f"round-{server_round:05d}.safetensors"
