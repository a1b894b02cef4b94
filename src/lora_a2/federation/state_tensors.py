"""States as named tensors, for whoever stores them: a server's checkpoint, a client's disk. One form for all.

Names begin with what a tensor belongs to (`factors`, `private`, `extra`, …) and go on with its kind and its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from lora_a2.core.tensors import Array, Key, Tensors
from lora_a2.core.types import ALL_FACTORS, Adapter, ClientState, Factors, FloatArray, ServerState

Named = dict[str, Array]


def named(prefix: str, tensors: Mapping[Key, Array]) -> Named:
    """`prefix/KIND/NAME` → array, of the same shape: `np.ascontiguousarray` would make a vector of a number."""
    return {f"{prefix}/{kind}/{name}": np.asarray(v, order="C") for (kind, name), v in tensors.items()}


def under(prefix: str, arrays: Mapping[str, Array]) -> Tensors:
    """The inverse of `named`."""
    found = {}
    for key, values in arrays.items():
        if key.startswith(f"{prefix}/"):
            kind, _, name = key.removeprefix(f"{prefix}/").partition("/")
            found[kind, name] = values
    return Tensors(found)


def adapter_of(tensors: Mapping[Key, Array], lora_alpha: float) -> Adapter:
    """An adapter from its tensors.

    Raises:
        KeyError: a factor is missing.
        ValueError: there is no module.
    """
    modules = list(dict.fromkeys(name for kind, name in tensors if kind == "A"))
    if not modules:
        raise ValueError("it holds no adapter")
    core = ("R", modules[0]) in tensors
    factors = {n: Factors(**{x: tensors[x, n] for x in (ALL_FACTORS if core else ("A", "B"))}) for n in modules}
    return Adapter(factors, lora_alpha, {name: v for (kind, name), v in tensors.items() if kind == "head"})


def client_tensors(state: ClientState) -> Named:
    """A client's state, but for `lora_alpha` and the round, which are numbers of its own file."""
    held: Named = {} if state.adapter is None else named("held", state.adapter.tensors)
    base = {f"base/weight/{name}": np.ascontiguousarray(v) for name, v in state.base_delta.items()}
    name: Named = {"base_id": np.frombuffer(state.base_id, np.uint8)}
    return {**held, **base, **name, **named("private", state.private), **named("extra", state.extra)}


def client_of(arrays: Mapping[str, Array], server_round: int, lora_alpha: float | None) -> ClientState:
    """The inverse of `client_tensors`; `lora_alpha` is that of the adapter held, None if none is.

    Raises:
        KeyError, ValueError: something is missing.
    """
    held = under("held", arrays)
    return ClientState(
        server_round,
        adapter_of(held, lora_alpha) if lora_alpha is not None else None,
        {name: v for (_, name), v in under("base", arrays).items()},
        bytes(arrays["base_id"].tobytes()),
        under("private", arrays),
        under("extra", arrays),
    )


def server_tensors(state: ServerState) -> Named:
    """A server's state, but for its numbers; see `server_numbers`."""
    update: Named = {}
    for name, change in state.base_update.items():
        if isinstance(change, Factors):
            update |= named("update", {("A", name): change.A, ("B", name): change.B})
        else:
            update |= named("update", {("weight", name): change})
    base = {f"base/weight/{name}": np.ascontiguousarray(v) for name, v in state.base_delta.items()}
    extra, changed = named("extra", state.extra), named("changed", state.changed)
    return {**named("adapter", state.adapter.tensors), **base, **update, **extra, **changed}


def server_numbers(state: ServerState) -> dict[str, Any]:
    """What is no tensor of a server's state, as plain values for JSON."""
    return {
        "server_round": state.server_round,
        "lora_alpha": state.adapter.lora_alpha,
        "seed": state.seed,
        "held": _pairs(state.held),
        "client_ranks": _pairs(state.client_ranks),
    }


def server_of(arrays: Mapping[str, Array], numbers: Mapping[str, Any]) -> ServerState:
    """The inverse of `server_tensors` and `server_numbers`.

    Raises:
        KeyError, TypeError, ValueError: something is missing, or of another type.
    """
    changes = under("update", arrays)
    update: dict[str, FloatArray | Factors] = {name: v for (_, name), v in changes.of("weight").items()}
    update |= {name: Factors(A=v, B=changes["B", name]) for (_, name), v in changes.of("A").items()}
    return ServerState(
        server_round=int(numbers["server_round"]),
        adapter=adapter_of(under("adapter", arrays), float(numbers["lora_alpha"])),
        seed=int(numbers["seed"]),
        base_delta={name: v for (_, name), v in under("base", arrays).items()},
        base_update=update,
        changed=dict(under("changed", arrays)),
        held=_numbers(numbers["held"]),
        client_ranks=_numbers(numbers["client_ranks"]),
        extra=under("extra", arrays),
    )


def _pairs(numbers: Mapping[int, int]) -> dict[str, int]:
    return {str(client): number for client, number in sorted(numbers.items())}


def _numbers(pairs: Mapping[str, Any]) -> dict[int, int]:
    return {int(client): int(number) for client, number in _items(pairs)}


def _items(pairs: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    return pairs.items()
