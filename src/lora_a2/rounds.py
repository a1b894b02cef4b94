"""One round, whoever drives it: dispatch, train, screen, aggregate, record. Every payload crosses the codec.

The simulator calls `client_round` itself; a deployment calls it on the node. Both call `server_round` on the server.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from lora_a2 import codec
from lora_a2.algebra import difference
from lora_a2.errors import CodecError, ReplyError
from lora_a2.method import Method
from lora_a2.model.classifier import Classifier
from lora_a2.randomness import generator
from lora_a2.training.local import Task, TokenizedExamples, TrainingSettings, epoch_orders, train_cohort
from lora_a2.types import Adapter, ClientProfile, Download, Layout, Reply, ServerState, Upload


@dataclass(frozen=True)
class Federation:
    """What both ends of a federation agree on before the first round.

    Attributes:
        method: the algorithm.
        layout: modules and head of the adapter.
        initial: the seeded start at the server's rank; supplies factors that never travel.
        seed: of every random number.
        local_epochs: E.
        training: hyperparameters of local training.
        wire_dtype: value type of payloads.
    """

    method: Method
    layout: Layout
    initial: Adapter
    seed: int
    local_epochs: int
    training: TrainingSettings
    wire_dtype: codec.ValueType


@dataclass(frozen=True)
class ClientRecord:
    """What one client did in a round. `selected`: module → rank slices uploaded (modules with none left out)."""

    id: int
    num_examples: int
    rank_budget: int
    uploaded_bytes: int
    uploaded_parameters: int
    downloaded_bytes: int
    downloaded_parameters: int
    train_loss: float
    selected: dict[str, int]


@dataclass(frozen=True)
class RoundRecord:
    """A line of `rounds.jsonl`. Bytes are as encoded; sums are over the round's cohort.

    `metrics` holds the evaluation, empty in rounds without one; `seconds` the time of each phase.
    """

    server_round: int
    trainable: list[str]
    clients: list[ClientRecord]
    uploaded_bytes: int
    uploaded_parameters: int
    downloaded_bytes: int
    downloaded_parameters: int
    train_loss: float
    refused: dict[int, str] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for `json.dumps`."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> RoundRecord:
        """The inverse of `to_json`."""
        clients = [ClientRecord(**c) for c in values["clients"]]
        refused = {int(k): v for k, v in values["refused"].items()}
        return cls(**{**values, "clients": clients, "refused": refused})


def dispatch(federation: Federation, state: ServerState, profile: ClientProfile) -> bytes:
    """The encoded download of one client for the round after `state`."""
    server_round = state.server_round + 1
    method = federation.method
    download = Download(server_round, profile.id, method.trainable(server_round), method.dispatch(state, profile))
    return codec.encode_download(download, federation.layout, federation.wire_dtype, method.ever_trained)


def receive(federation: Federation, data: bytes) -> Download:
    """The download that both ends see: decoded, with the factors that never travel filled in."""
    return codec.decode_download(data, federation.layout, federation.initial)


def client_round(
    federation: Federation,
    classifier: Classifier,
    clients: Sequence[tuple[ClientProfile, TokenizedExamples]],
    downloads: Sequence[bytes],
) -> list[bytes]:
    """The client half of a round for K clients at once: probe, select, train, upload.

    Returns the encoded uploads, in the order of the clients.
    """
    method, settings = federation.method, federation.training
    received = _share_starts([receive(federation, data) for data in downloads])
    trainable, server_round = received[0].trainable, received[0].server_round

    def tasks(purpose: str, epochs: int, masks: Sequence[Any]) -> list[Task]:
        result = []
        for (profile, examples), download, mask in zip(clients, received, masks, strict=True):
            rng = generator(federation.seed, purpose, server_round, profile.id)
            result.append(Task(download.adapter, examples, mask, epoch_orders(len(examples), epochs, rng)))
        return result

    masks: list[Any] = [None] * len(clients)
    if method.select is not None:
        probed = train_cohort(classifier, tasks("probe", 1, masks), trainable, settings)
        masks = [
            method.select(
                download.adapter,
                result.adapter,
                trainable,
                profile.rank_budget,
                generator(federation.seed, "select", server_round, profile.id),
            )
            for (profile, _), download, result in zip(clients, received, probed, strict=True)
        ]
    trained = train_cohort(classifier, tasks("train", federation.local_epochs, masks), trainable, settings)
    uploads = []
    for (profile, examples), download, result, mask in zip(clients, received, trained, masks, strict=True):
        update = difference(result.adapter, download.adapter, trainable, mask)
        upload = Upload(server_round, profile.id, trainable, len(examples), result.train_loss, mask, update)
        uploads.append(codec.encode_upload(upload, federation.layout, federation.wire_dtype))
    return uploads


def _share_starts(downloads: list[Download]) -> list[Download]:
    """Gives downloads of equal content one adapter object, so that a cohort's common start is seen as common."""
    first = downloads[0].adapter

    def same(other: Adapter) -> bool:
        return (
            other.rank == first.rank
            and all(
                np.array_equal(f.A, other.factors[name].A) and np.array_equal(f.B, other.factors[name].B)
                for name, f in first.factors.items()
            )
            and all(np.array_equal(v, other.head[name]) for name, v in first.head.items())
        )

    return [downloads[0], *(replace(d, adapter=first) if same(d.adapter) else d for d in downloads[1:])]


def screen(federation: Federation, profile: ClientProfile, download: Download, data: bytes) -> Upload:
    """Decodes an upload and checks all that must hold before it may touch the state.

    Raises:
        CodecError: not a valid message of this federation.
        ReplyError: another round or client, other factors, more examples than the client's profile states, more
            rank slices than its budget, or values that are not finite.
    """
    upload = codec.decode_upload(data, federation.layout, download.adapter.rank, download.adapter.lora_alpha)
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
    arrays = [f.get(x) for f in upload.update.factors.values() for x in upload.trainable]
    if not all(np.isfinite(a).all() for a in [*arrays, *upload.update.head.values()]):
        raise ReplyError(f"Client {profile.id} sent values that are not finite.")
    return upload


Train = Callable[[Sequence[tuple[ClientProfile, bytes]]], Iterable[tuple[ClientProfile, bytes]]]
"""Sends each client its download and yields the encoded uploads that come back, in any number, in cohort order."""


def server_round(
    federation: Federation, state: ServerState, cohort: Sequence[ClientProfile], train: Train
) -> tuple[ServerState, RoundRecord]:
    """The server half of a round: a new state and its record. A reply that fails `screen` is left out and recorded.

    Replies are screened and aggregated one at a time as they arrive.

    Raises:
        ReplyError: no usable reply came back.
    """
    began = time.perf_counter()
    downloads = [(profile, dispatch(federation, state, profile)) for profile in cohort]
    sent = {profile.id: data for profile, data in downloads}
    records: list[ClientRecord] = []
    refused: dict[int, str] = {}
    waited = 0.0

    def replies() -> Iterator[Reply]:
        nonlocal waited
        incoming = iter(train(downloads))
        while True:
            mark = time.perf_counter()
            item = next(incoming, None)
            waited += time.perf_counter() - mark
            if item is None:
                return
            profile, data = item
            download = receive(federation, sent[profile.id])
            try:
                upload = screen(federation, profile, download, data)
            except (CodecError, ReplyError) as error:
                refused[profile.id] = str(error)
                continue
            records.append(_client_record(federation, profile, download, upload, len(sent[profile.id]), len(data)))
            yield Reply(profile, download, upload)

    new = federation.method.aggregate(state, replies())
    new = replace(new, server_round=state.server_round + 1)
    total = sum(r.num_examples for r in records)
    record = RoundRecord(
        server_round=new.server_round,
        trainable=sorted(federation.method.trainable(new.server_round)),
        clients=records,
        uploaded_bytes=sum(r.uploaded_bytes for r in records),
        uploaded_parameters=sum(r.uploaded_parameters for r in records),
        downloaded_bytes=sum(len(data) for data in sent.values()),
        downloaded_parameters=sum(r.downloaded_parameters for r in records),
        train_loss=sum(r.train_loss * r.num_examples for r in records) / total,
        refused=refused,
        seconds={"train": waited, "server": time.perf_counter() - began - waited},
    )
    return new, record


def _client_record(
    federation: Federation, profile: ClientProfile, download: Download, upload: Upload, down: int, up: int
) -> ClientRecord:
    rank = download.adapter.rank
    counts = {
        m.name: rank if upload.mask is None else int(upload.mask[m.name].sum()) for m in federation.layout.modules
    }
    return ClientRecord(
        id=profile.id,
        num_examples=upload.num_examples,
        rank_budget=profile.rank_budget,
        uploaded_bytes=up,
        uploaded_parameters=codec.upload_parameters(federation.layout, rank, list(counts.values()), upload.trainable),
        downloaded_bytes=down,
        downloaded_parameters=codec.download_parameters(federation.layout, rank, federation.method.ever_trained),
        train_loss=upload.train_loss,
        selected={name: n for name, n in counts.items() if n},
    )
