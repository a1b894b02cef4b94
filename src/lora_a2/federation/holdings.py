"""Who holds what: a download carries what changed since the client last decoded one, and the digest of what it holds then.

The server knows for every rank slice, head tensor and base weight in which round it last changed, and for every client of
which round it decoded a download. A new client derives the start from the seed. Values travel as they are, not as
differences, so that one who holds more than the server knows of loses nothing; only the last change of base weights travels
as a change, to those who hold the weights before it. Where the digests differ (state lost, another NumPy, a server that went
back) the client says so, and is sent everything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from lora_a2 import codec
from lora_a2.core.algebra import rows, truncate
from lora_a2.core.tensors import Array, Key
from lora_a2.core.types import (
    EVERYTHING,
    FROM_SEED,
    Adapter,
    BaseDelta,
    BaseUpdate,
    BoolArray,
    ClientProfile,
    ClientState,
    Download,
    IntArray,
    ServerState,
    dense,
    moved_base,
)
from lora_a2.errors import LostState
from lora_a2.federation.agreement import Federation


class Outbox:
    """The downloads of the round after `state`. What is common to several clients is made and encoded once."""

    def __init__(self, federation: Federation, state: ServerState) -> None:
        self._federation, self._state = federation, state
        self._views: dict[int, tuple[Adapter, bytes]] = {}
        self._bodies: dict[tuple[int, int], codec.Body] = {}
        self._bases: dict[tuple[bool, tuple[str, ...]], bytes] = {}
        self._before, self._after = base_id(state.base_delta), base_id(state.base)

    def download(self, profile: ClientProfile) -> tuple[Download, bytes]:
        """What a client will hold, and the message that makes it so.

        Raises:
            CodecError: it cannot be encoded.
        """
        federation, state = self._federation, self._state
        server_round = state.server_round + 1
        rank = rank_of(state, profile)
        adapter, held = self._view(rank)
        since = EVERYTHING if federation.method.sparse else state.held.get(profile.id, FROM_SEED)
        changed = None if since == EVERYTHING else changed_since(federation, state, since, rank)
        download = Download(
            server_round,
            profile.id,
            federation.method.shared(server_round),
            adapter,
            since,
            changed,
            *base_since(state, since),
            self._before,
            self._after,
            held,
        )
        if (rank, since) not in self._bodies:
            # The same for many rounds, and it may be a whole model.
            moved = download.base_whole, tuple(download.base_update)
            body = codec.encode_body(download, schema(federation, since), self._bases.get(moved))
            self._bodies[rank, since], self._bases[moved] = body, body.base
        return download, codec.addressed(download, self._bodies[rank, since])

    def _view(self, rank: int) -> tuple[Adapter, bytes]:
        """What clients of a rank will hold, and its digest."""
        if rank not in self._views:
            adapter = as_held(self._federation, self._federation.method.dispatch(self._state, rank))
            self._views[rank] = adapter, digest(self._federation, adapter, self._after)
        return self._views[rank]


def rank_of(state: ServerState, profile: ClientProfile) -> int:
    """The rank that a client holds now."""
    return min(state.client_ranks.get(profile.id, profile.rank), state.adapter.rank)


def schema(federation: Federation, since: int) -> codec.DownloadSchema:
    """How downloads are encoded: everything in float32, which holds what was rounded to the wire's type before."""
    method = federation.method
    if since == EVERYTHING and not method.sparse:
        kinds = frozenset(method.factors) - method.private
        return codec.DownloadSchema(federation.layout, codec.EXACT, kinds)
    return codec.DownloadSchema(federation.layout, federation.wire_dtype, method.travels, method.sparse)


def as_held(federation: Federation, adapter: Adapter) -> Adapter:
    """An adapter as clients hold it: what travels is rounded to the wire's value type, what does not is not."""
    travels = {*federation.method.travels, "head"}
    sent = {key: codec.as_sent(v, federation.wire_dtype) for key, v in adapter.tensors.items() if key[0] in travels}
    return adapter.with_tensors(sent)


def start(federation: Federation, rank: int) -> Adapter:
    """What a client of a rank derives from the seed."""
    return as_held(federation, truncate(federation.initial, rank))


def base_id(base: BaseDelta) -> bytes:
    """What a server calls base weights: 16 bytes, zeros for the pre-trained ones.

    Clients take the name over instead of making it: a product of factors may have other last bits on another processor.
    """
    return _hashed({("base", name): values for name, values in base.items()}) if base else bytes(16)


def digest(federation: Federation, adapter: Adapter, base: bytes) -> bytes:
    """16 bytes that stand for all that a client shares with the server: the adapter but for private factors, and the name of the
    base weights."""
    shared = {key: v for key, v in adapter.tensors.items() if key[0] not in federation.method.private}
    return hashlib.blake2b(_hashed(shared) + base, digest_size=16).digest()


def _hashed(tensors: Mapping[Key, Array]) -> bytes:
    found = hashlib.blake2b(digest_size=16)
    for (kind, name), values in sorted(tensors.items()):
        found.update(f"{kind}/{name}{values.shape}".encode())
        found.update(np.ascontiguousarray(values, "<f4").data)
    return found.digest()


def changed_since(federation: Federation, state: ServerState, since: int, rank: int) -> dict[Key, BoolArray]:
    """What of a client's adapter changed in the rounds from `since` on: (factor, module) → (rank,), ("head", name) → ()."""
    first = max(since, 1)
    found: dict[Key, BoolArray] = {}
    for kind, name in state.adapter.tensors:
        if kind == "head":
            found[kind, name] = np.asarray(state.changed.get((kind, name), 0) >= np.int64(first))
        elif kind in federation.method.travels:
            held = np.zeros(state.adapter.rank, np.int64)
            found[kind, name] = (state.changed.get((kind, name), held) >= first)[:rank]
    return found


def base_since(state: ServerState, since: int) -> tuple[BaseUpdate, bool]:
    """The change of base weights to send, and whether it is all that they ever moved, weight by weight."""
    if since == state.server_round and since > FROM_SEED:
        return state.base_update, False
    first = max(since, 1)
    return {n: v for n, v in state.base.items() if state.changed.get(("base", n), np.int64(0)) >= first}, True


def stamped(old: ServerState, new: ServerState) -> dict[Key, IntArray]:
    """`changed` of a new state: its round wherever a bit differs from the old one."""
    number = np.int64(new.server_round)
    changed = dict(old.changed)
    before = old.adapter.tensors
    for (kind, name), values in new.adapter.tensors.items():
        differs = _bits(values) != _bits(before[kind, name])
        if kind == "head":
            if differs.any():
                changed[kind, name] = np.asarray(number)
            continue
        moved = differs.any(0 if kind == "B" else 1)
        if moved.any():
            last = changed.get((kind, name), np.zeros(len(moved), np.int64))
            changed[kind, name] = np.where(moved, number, last)
    changed.update({("base", name): np.asarray(number) for name in new.base_update})
    return changed


def _bits(values: Array) -> Array:
    return np.ascontiguousarray(values, np.float32).view(np.uint32)


def receive(federation: Federation, data: bytes, kept: ClientState) -> tuple[Download, ClientState]:
    """The download that a message stands for, and what the client holds then.

    Memory is bounded by what both ends know: the layout, and the rank of the server's adapter.

    Raises:
        LostState: the client does not hold what the download builds on.
        CodecError: it is not a valid message of this federation.
    """
    _, _, since, rank = codec.read_address(data, federation.layout, federation.initial.rank)
    if since > FROM_SEED and (kept.adapter is None or kept.server_round < since or kept.adapter.rank < rank):
        raise LostState(f"The download builds on round {since}; the last one here is {kept.server_round}.")
    builds = since > FROM_SEED and kept.adapter is not None
    held = truncate(kept.adapter, rank) if builds and kept.adapter is not None else start(federation, rank)
    download = codec.decode_download(data, schema(federation, since), held)
    base, name = (kept.base_delta, kept.base_id) if builds else ({}, bytes(16))
    if download.base_update and not download.base_whole and (kept.server_round, name) != (since, download.base_before):
        raise LostState(f"The base weights of round {since} are not here; those of round {kept.server_round} are.")
    if download.base_update:
        name = download.base_after
    if download.base_whole:
        base = {**base, **{name: dense(change) for name, change in download.base_update.items()}}
    else:
        base = moved_base(base, download.base_update)
    if digest(federation, download.adapter, name) != download.digest:
        raise LostState("What is held here after the download is not what the server holds.")
    state = replace(kept, server_round=download.server_round, adapter=download.adapter, base_delta=base, base_id=name)
    return download, state


def simulated(federation: Federation, state: ServerState, profile: ClientProfile, private: ClientState) -> ClientState:
    """What a client would hold before the round after `state`, had it kept it: what changed since is not a number.

    So a simulation keeps nothing for its clients but what is their own, `private`, and a download that leaves something
    out is still found out.
    """
    since = state.held.get(profile.id, FROM_SEED)
    if since <= FROM_SEED or federation.method.sparse:
        return private
    rank = rank_of(state, profile)
    adapter = as_held(federation, federation.method.dispatch(state, rank))
    values = adapter.tensors
    gone = {
        (kind, name): np.where(keep if kind == "head" else rows(keep, kind), np.float32(np.nan), values[kind, name])
        for (kind, name), keep in changed_since(federation, state, since, rank).items()
        if keep.any()
    }
    name = base_id(state.base_delta if since == state.server_round and state.base_update else state.base)
    if since == state.server_round:
        base = state.base_delta
    else:
        base = {n: v for n, v in state.base.items() if state.changed.get(("base", n), np.int64(0)) < since}
    return replace(private, server_round=since, adapter=adapter.with_tensors(gone), base_delta=base, base_id=name)


def personal(adapter: Adapter, private: Mapping[Key, Array]) -> Adapter:
    """`adapter` with a client's private factors in the place of the server's."""
    return adapter.with_tensors(private) if private else adapter
