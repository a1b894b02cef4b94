"""The server half of a round, whoever drives it: dispatch, screen, aggregate, record. Every payload crosses the codec."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from lora_a2 import codec
from lora_a2.algebra import dense, moved_base
from lora_a2.clients import ClientMemory, Federation, client_round, receive
from lora_a2.errors import CodecError, ReplyError
from lora_a2.records import ClientRecord, RoundRecord
from lora_a2.types import BaseUpdate, ClientProfile, Download, Reply, ServerState, Upload

__all__ = [
    "ClientMemory",
    "ClientRecord",
    "Federation",
    "Refusal",
    "RoundRecord",
    "RoundRules",
    "client_round",
    "dispatch",
    "receive",
    "screen",
]


def dispatch(federation: Federation, state: ServerState, profile: ClientProfile) -> bytes:
    """The encoded download of one client for the round after `state`.

    Base weights that moved travel in float32 whatever the value type, since rounding errors would add up in them: the
    last round's change to clients that took part in it, all that changed to the others.
    """
    server_round = state.server_round + 1
    method, layout = federation.method, federation.layout
    download = Download(server_round, profile.id, method.shared(server_round), method.dispatch(state, profile))
    frame = codec.encode_download(
        download, layout, federation.wire_dtype, method.travels, sparse=method.compress is not None
    )
    whole = profile.id not in state.synced
    update = moved_base(state.base, state.base_update) if whole else state.base_update
    return codec.attach_base(frame, codec.BaseMessage(update, whole), layout, "fp32")


def screen(federation: Federation, profile: ClientProfile, download: Download, data: bytes) -> Upload:
    """Decodes an upload and checks all that must hold before it may touch the state.

    Raises:
        CodecError: not a valid message of this federation.
        ReplyError: another round or client, other factors, more examples than the client's profile states, more
            rank slices than its budget, or values that are not finite.
    """
    start = download.adapter
    upload = codec.decode_upload(codec.detach_frame(data), federation.layout, start.rank, start.lora_alpha)
    upload = replace(upload, base_update=_full_update(federation, data))
    expected = (download.server_round, profile.id, download.trainable)
    given = (upload.server_round, upload.client, upload.trainable)
    if given != expected:
        raise ReplyError(
            f"Client {profile.id} sent a reply for round {given[0]}, client {given[1]}, factors {sorted(given[2])}; "
            f"expected round {expected[0]}, client {expected[1]}, factors {sorted(expected[2])}."
        )
    if upload.num_examples > profile.num_examples:
        raise ReplyError(
            f"Client {profile.id} claims {upload.num_examples} examples; its profile allows {profile.num_examples}."
        )
    modules = len(federation.layout.modules)
    selected = sum(int(m.sum()) for m in upload.mask.values()) if upload.mask else download.adapter.rank * modules
    allowed = (profile.rank_budget if federation.method.select else download.adapter.rank) * modules
    if selected > allowed:
        raise ReplyError(f"Client {profile.id} sent {selected} rank slices; its budget allows {allowed}.")
    if federation.method.prune is not None and upload.mask is not None:
        kept = {tuple(keep.tolist()) for keep in upload.mask.values()}
        if len(kept) > 1 or not (first := np.array(kept.pop()))[0] or (np.diff(first.astype(int)) > 0).any():
            raise ReplyError(f"Client {profile.id} pruned otherwise than to the same first rank slices everywhere.")
    arrays = [f.get(x) for f in upload.update.factors.values() for x in upload.trainable]
    weights = [dense(change) for change in upload.base_update.values()]
    finite = all(np.isfinite(a).all() for a in [*arrays, *weights, *upload.update.head.values()])
    if not (finite and np.isfinite(upload.train_loss)):
        raise ReplyError(f"Client {profile.id} sent values that are not finite.")
    return upload


def _full_update(federation: Federation, data: bytes) -> BaseUpdate:
    """The change of every weight, where the method trains them; else the upload must have none."""
    update = codec.read_base(data, federation.layout).update
    wanted = {name for name, _ in federation.layout.base} if federation.method.full else set()
    if update.keys() != wanted:
        raise ReplyError(f"The upload changes {len(update)} base weights; expected {len(wanted)}.")
    return update


@dataclass(frozen=True, slots=True)
class Refusal:
    """What came of a client instead of an upload: an error, or nothing in time. `received_bytes` crossed the wire."""

    reason: str
    received_bytes: int = 0


@dataclass(frozen=True, slots=True)
class RoundRules:
    """What the server's operator demands of a round: `min_replies` usable replies, and that no client counts for more than
    `max_examples` examples (None: for as many as it has)."""

    min_replies: int = 1
    max_examples: int | None = None


Train = Callable[[Iterable[tuple[ClientProfile, bytes]]], Iterable[tuple[ClientProfile, bytes | Refusal]]]
"""Takes each client's download, as many at a time as it likes, and yields what comes back, in any number: encoded uploads,
and refusals that the driver knows of."""


class Watch(Protocol):
    """Hears of a round what the server sees of it."""

    def begin(self) -> None:
        """A round begins, or begins again after too few usable replies."""

    def reply(self, reply: Reply) -> None:
        """A reply counts; it is aggregated next."""


class _Exchange:
    """What crosses the wire in a round, counted where it crosses, and what is still expected to come back.

    Downloads are made when they are asked for and dropped when they are answered, so that memory does not grow with the
    cohort.
    """

    def __init__(
        self, federation: Federation, state: ServerState, cohort: Sequence[ClientProfile], rules: RoundRules
    ) -> None:
        self._federation, self._state, self._cohort, self._rules = federation, state, cohort, rules
        self._open: dict[int, tuple[Download, bytes]] = {}
        self.records: list[ClientRecord] = []
        self.refused: dict[int, str] = {}
        self.downloaded_bytes = self.downloaded_parameters = self.uploaded_bytes = 0
        self.waited = 0.0

    def downloads(self) -> Iterator[tuple[ClientProfile, bytes]]:
        """Each client's encoded download."""
        for profile in self._cohort:
            data = dispatch(self._federation, self._state, profile)
            download = receive(self._federation, data)
            self._open[profile.id] = download, data
            self.downloaded_bytes += len(data)
            self.downloaded_parameters += _downloaded_parameters(self._federation, download, data)
            yield profile, data

    def replies(
        self, incoming: Iterator[tuple[ClientProfile, bytes | Refusal]], watch: Watch | None
    ) -> Iterator[Reply]:
        """The uploads that may touch the state, one at a time; the others are recorded with the reason."""
        while True:
            mark = time.perf_counter()
            item = next(incoming, None)
            self.waited += time.perf_counter() - mark
            if item is None:
                return
            profile, data = item
            if isinstance(data, Refusal):
                self.uploaded_bytes += data.received_bytes
                self.refused[profile.id] = data.reason
                continue
            self.uploaded_bytes += len(data)
            try:
                if profile.id not in self._open:
                    raise ReplyError(
                        f"Client {profile.id} sent a reply that nobody waits for: a second one, or unasked."
                    )
                download, sent = self._open.pop(profile.id)
                upload = self._bounded(screen(self._federation, profile, download, data))
            except (CodecError, ReplyError) as error:
                self.refused[profile.id] = str(error)
                continue
            self.records.append(_client_record(self._federation, profile, download, upload, sent, data))
            reply = Reply(profile, download, upload)
            if watch is not None:
                watch.reply(reply)
            yield reply

    def _bounded(self, upload: Upload) -> Upload:
        most = self._rules.max_examples
        return upload if most is None else replace(upload, num_examples=min(upload.num_examples, most))


def server_round(
    federation: Federation,
    state: ServerState,
    cohort: Sequence[ClientProfile],
    train: Train,
    rules: RoundRules | None = None,
    watch: Watch | None = None,
) -> tuple[ServerState, RoundRecord]:
    """The server half of a round: a new state and its record. A reply that fails `screen` is left out and recorded.

    Replies are screened and aggregated one at a time as they arrive. Bytes count whatever crossed the wire, refused replies
    too; parameters uploaded are those that counted.

    Raises:
        ReplyError: no usable reply came back, or fewer than the rules demand.
    """
    began = time.perf_counter()
    rules = rules or RoundRules()
    if watch is not None:
        watch.begin()
    exchange = _Exchange(federation, state, cohort, rules)
    incoming = iter(train(exchange.downloads()))
    try:
        new = federation.method.aggregate(replace(state, base_update={}), exchange.replies(incoming, watch))
    except ReplyError as error:
        if not exchange.refused:
            raise
        reason = next(iter(exchange.refused.values()))
        raise ReplyError(
            f"Round {state.server_round + 1} has no usable reply: {len(exchange.refused)} were refused, the first because: "
            f"{reason} Where values are not finite, lower the learning rate."
        ) from error
    records = exchange.records
    if len(records) < rules.min_replies:
        raise ReplyError(
            f"Round {state.server_round + 1} has {len(records)} usable replies; expected {rules.min_replies} at least"
            + "".join(f"; client {client}: {reason}" for client, reason in sorted(exchange.refused.items()))
        )
    new = replace(
        new,
        server_round=state.server_round + 1,
        base=moved_base(state.base, state.base_update),
        synced=frozenset(r.id for r in records),
    )
    total = sum(r.num_examples for r in records)
    record = RoundRecord(
        server_round=new.server_round,
        trainable=sorted(federation.method.trainable(new.server_round)),
        clients=sorted(records, key=lambda r: r.id),
        uploaded_bytes=exchange.uploaded_bytes,
        uploaded_parameters=sum(r.uploaded_parameters for r in records),
        downloaded_bytes=exchange.downloaded_bytes,
        downloaded_parameters=exchange.downloaded_parameters,
        train_loss=sum(r.train_loss * r.num_examples for r in records) / total,
        refused=exchange.refused,
        seconds={"train": exchange.waited, "server": time.perf_counter() - began - exchange.waited},
    )
    return new, record


def _downloaded_parameters(federation: Federation, download: Download, data: bytes) -> int:
    layout, method = federation.layout, federation.method
    received = codec.download_parameters(layout, download.adapter.rank, method.travels)
    if method.compress is not None:
        received -= codec.zero_entries(download.adapter, method.travels)
    return received + codec.base_parameters(codec.read_base(data, layout).update)


def _client_record(
    federation: Federation, profile: ClientProfile, download: Download, upload: Upload, down: bytes, up: bytes
) -> ClientRecord:
    layout, rank, method = federation.layout, download.adapter.rank, federation.method
    counts = {m.name: rank if upload.mask is None else int(upload.mask[m.name].sum()) for m in layout.modules}
    sent = codec.upload_parameters(layout, rank, list(counts.values()), upload.trainable)
    if method.compress is not None:
        sent -= codec.zero_entries(upload.update, upload.trainable)
    return ClientRecord(
        id=profile.id,
        num_examples=upload.num_examples,
        rank_budget=profile.rank_budget,
        uploaded_bytes=len(up),
        uploaded_parameters=sent + codec.base_parameters(upload.base_update),
        downloaded_bytes=len(down),
        downloaded_parameters=_downloaded_parameters(federation, download, down),
        train_loss=upload.train_loss,
        selected={name: n for name, n in counts.items() if n},
    )
