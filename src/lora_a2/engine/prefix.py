"""Activations below the lowest trained block: the same in every epoch of a round, so computed once.

The backbone is frozen, dropout is off, and what trains lies above: the hidden states that enter that block are constant.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from lora_a2.engine.packing import PackedBatch
from lora_a2.engine.transfer import to_device

_CHUNK_ROWS = 2048
"""Tokens in one pass when a prefix is computed."""


@dataclass(frozen=True)
class Prefix:
    """Hidden states of K clients' tokens where they enter block `block`.

    Attributes:
        block: 1 … number of blocks − 1.
        hidden: (tokens, H) in the compute dtype.
        starts: per client (n,) int64, the row of each example's first token.
    """

    block: int
    hidden: Tensor
    starts: tuple[np.ndarray, ...]

    def rows(self, clients: Sequence[np.ndarray], lengths: Sequence[Sequence[int]], batch: PackedBatch) -> Tensor:
        """Hidden states (1, K·T, H) for a batch of the given examples of the first clients; zero in filler rows."""
        width = batch.input_ids.shape[1] // batch.clients
        index = np.zeros((batch.clients, width), np.int64)
        for k, (examples, sizes) in enumerate(zip(clients, lengths, strict=True)):
            if not len(examples):
                continue
            ends = np.cumsum(sizes)
            begin = self.starts[k][examples]
            index[k, : ends[-1]] = np.arange(ends[-1]) + np.repeat(begin - (ends - sizes), sizes)
        found = to_device(index.reshape(-1), self.hidden.device)
        return self.hidden.index_select(0, found).index_fill_(0, batch.filler, 0)[None]


class _Stop(Exception):
    """Ends a forward pass where all that was wanted is known."""


class _Skipped(nn.Module):
    """Stands in for a block whose output nobody needs: hands its input on, in the shape of the block's output.

    Whatever else a model asks its block for (the kind of its attention, say), the block itself answers.
    """

    def __init__(self, block: nn.Module, length: int | None) -> None:
        super().__init__()
        self._length = length
        self.__dict__["_block"] = block  # not as a part of this module, whose parameters it would double

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_block"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden = _entering(args, kwargs)
        return hidden if self._length is None else (hidden, *([None] * (self._length - 1)))


def _entering(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The hidden states among a block's arguments."""
    return args[0] if args else kwargs["hidden_states"]


class Blocks:
    """The transformer blocks of a backbone: where activations can be read, and fed in again."""

    def __init__(self, backbone: nn.Module, name: str) -> None:
        found = backbone.get_submodule(name)
        assert isinstance(found, nn.ModuleList)
        self.name = name
        self._list = found
        self._output_length: int | None = None

    def lowest(self, modules: Sequence[str]) -> int:
        """Index of the lowest block that holds one of the modules; 0 if one lies outside the blocks."""
        indices = [
            int(name.removeprefix(f"{self.name}.").split(".")[0]) if name.startswith(f"{self.name}.") else 0
            for name in modules
        ]
        return min(indices, default=0)

    @contextmanager
    def reading(self, block: int, found: list[Tensor]) -> Iterator[None]:
        """Within it, a forward pass appends what enters `block` to `found` and ends there."""

        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found.append(_entering(args, kwargs))
            raise _Stop

        def measure(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._output_length = len(output) if isinstance(output, tuple) else None

        handles = [
            self._list[block].register_forward_pre_hook(note, with_kwargs=True),
            self._list[0].register_forward_hook(measure),
        ]
        try:
            yield
        except _Stop:
            pass
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def entering(self, block: int, hidden: Tensor) -> Iterator[None]:
        """Within it, a forward pass skips the blocks below `block` and gives it `hidden` instead of what came through."""
        kept = [self._list[i] for i in range(block)]
        for i in range(block):
            self._list[i] = _Skipped(kept[i], self._output_length)

        def enter(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return ((hidden, *args[1:]), kwargs) if args else ((), {**kwargs, "hidden_states": hidden})

        handle = self._list[block].register_forward_pre_hook(enter, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()
            for i, module in enumerate(kept):
                self._list[i] = module


def chunks(lengths: np.ndarray) -> list[np.ndarray]:
    """Cuts examples, shortest first, into passes of about `_CHUNK_ROWS` tokens."""
    order = np.argsort(lengths, kind="stable")
    totals = np.cumsum(lengths[order])
    return [
        part
        for part in np.split(order, np.searchsorted(totals, np.arange(_CHUNK_ROWS, totals[-1], _CHUNK_ROWS)))
        if len(part)
    ]
