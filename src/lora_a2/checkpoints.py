"""A server's state and what clients keep, as named tensors: the content of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lora_a2.clients import ClientMemory
from lora_a2.types import Adapter, Factor, Factors, FloatArray, Layout, ServerState


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
