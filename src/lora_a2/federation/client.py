"""The client half of a round, whoever drives it: receive, probe, select, train, upload. Every payload crosses the codec.

The simulator calls `client_round` itself; a deployment calls it on the node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lora_a2 import codec
from lora_a2.core.algebra import difference, moved_base
from lora_a2.core.randomness import generator
from lora_a2.core.types import Adapter, Base, ClientProfile, Download, Factor, Factors, FloatArray, Mask, Upload
from lora_a2.engine.classifier import Classifier
from lora_a2.engine.full import train_full
from lora_a2.engine.local import CohortTraining
from lora_a2.engine.work import ClientTask, TokenizedExamples, Trained, epoch_orders
from lora_a2.errors import CodecError
from lora_a2.federation.agreement import Federation
from lora_a2.federation.probes import LocalRound


@dataclass
class ClientMemory:
    """What a client keeps from round to round; `client_round` changes it.

    Attributes:
        base: how far its base weights have moved.
        private: (factor, module) → the values of a private factor; empty before its first round.
    """

    base: Base = field(default_factory=dict)
    private: Mapping[tuple[Factor, str], FloatArray] = field(default_factory=dict)


def receive(federation: Federation, data: bytes) -> Download:
    """The download that both ends see: decoded, with the factors that never travel filled in.

    Memory is bounded by what both ends know: the layout, and the rank of the server's adapter.
    """
    frame, initial = codec.detach_frame(data), federation.initial
    return codec.decode_download(frame, federation.layout, initial, max_rank=initial.rank)


def received_base(federation: Federation, data: bytes, memory: ClientMemory) -> Base:
    """The client's base weights at the start of the round: what it held, or nothing, and the change received."""
    message = codec.read_base(data, federation.layout)
    return moved_base({} if message.whole else memory.base, message.update)


def personal(adapter: Adapter, memory: ClientMemory) -> Adapter:
    """`adapter` with the client's private factors in the place of the server's."""
    if not memory.private:
        return adapter
    kept = memory.private
    factors = {n: Factors(A=kept.get(("A", n), f.A), B=kept.get(("B", n), f.B)) for n, f in adapter.factors.items()}
    return replace(adapter, factors=factors)


def client_round(
    federation: Federation,
    classifier: Classifier,
    clients: Sequence[tuple[ClientProfile, TokenizedExamples]],
    downloads: Sequence[bytes],
    memories: Sequence[ClientMemory] | None = None,
) -> list[bytes]:
    """The client half of a round for K clients at once: probe, select, train, prune, upload.

    `memories` are brought up to date; None for clients of a method that keeps nothing, or that begin.
    Returns the encoded uploads, in the order of the clients.
    """
    memories = [ClientMemory() for _ in clients] if memories is None else memories
    if classifier.alone and len(clients) > 1:
        each = zip(clients, downloads, memories, strict=True)
        return [upload for c, d, m in each for upload in client_round(federation, classifier, [c], [d], [m])]
    received = [receive(federation, data) for data in downloads]
    for memory, data in zip(memories, downloads, strict=True):
        memory.base = received_base(federation, data, memory)
    if federation.method.full:
        rounds = zip(clients, received, memories, strict=True)
        return [_full_round(federation, classifier, *each) for each in rounds]
    starts = [replace(d, adapter=personal(d.adapter, m)) for d, m in zip(received, memories, strict=True)]
    _share_base(classifier, memories)
    return _lora_round(federation, classifier, clients, _share_starts(starts), memories)


def _lora_round(
    federation: Federation,
    classifier: Classifier,
    clients: Sequence[tuple[ClientProfile, TokenizedExamples]],
    received: Sequence[Download],
    memories: Sequence[ClientMemory],
) -> list[bytes]:
    method = federation.method
    work = _local_round(federation, classifier, clients, received)
    if method.select is None:
        masks: list[Any] = [None] * len(clients)
        training = work.training("train", work.local_epochs, None)
    else:
        masks, training = federation.probe(work)
    trained = training.run()
    if method.prune is not None:
        masks = [method.prune(d.adapter, result.adapter) for d, result in zip(received, trained, strict=True)]
    for memory, result in zip(memories, trained, strict=True):
        memory.private = {(x, n): f.get(x) for n, f in result.adapter.factors.items() for x in method.private}
    return [
        _upload(federation, download, result, mask, profile.num_examples)
        for (profile, _), download, result, mask in zip(clients, received, trained, masks, strict=True)
    ]


def _local_round(
    federation: Federation,
    classifier: Classifier,
    clients: Sequence[tuple[ClientProfile, TokenizedExamples]],
    received: Sequence[Download],
) -> LocalRound:
    """The clients' training and selection, each with random numbers of its own."""
    method, server_round = federation.method, received[0].server_round
    trainable = method.trainable(server_round)

    def training(purpose: str, epochs: int, masks: Sequence[Mask] | None) -> CohortTraining:
        tasks = []
        each: Sequence[Mask | None] = [None] * len(clients) if masks is None else masks
        for (profile, examples), download, mask in zip(clients, received, each, strict=True):
            rng = generator(federation.seed, purpose, server_round, profile.id)
            tasks.append(ClientTask(download.adapter, examples, mask, epoch_orders(len(examples), epochs, rng)))
        return CohortTraining(classifier, tasks, trainable, federation.training)

    def select(probed: Sequence[Trained]) -> list[Mask]:
        assert method.select is not None, "only methods that select are probed"
        masks = []
        for (profile, _), download, result in zip(clients, received, probed, strict=True):
            rng = generator(federation.seed, "select", server_round, profile.id)
            masks.append(method.select(download.adapter, result.adapter, trainable, profile.rank_budget, rng))
        return masks

    return LocalRound(training, select, federation.local_epochs)


def _upload(federation: Federation, download: Download, result: Trained, mask: Any, examples: int) -> bytes:
    """Encodes what the client sends: the difference in the shared factors, within the mask, compressed."""
    method = federation.method
    shared = method.shared(download.server_round)
    update = difference(result.adapter, download.adapter, shared, mask)
    if federation.noise is not None:
        rng = generator(federation.seed, "noise", download.server_round, download.client)
        rates = federation.training.learning_rate, federation.training.learning_rate_ratio
        update = federation.noise.add(update, shared, mask, *rates, rng)
    if method.compress is not None:
        update = method.compress(update)
    upload = Upload(download.server_round, download.client, shared, examples, result.train_loss, mask, update)
    sparse = method.compress is not None
    return codec.encode_upload(upload, federation.layout, federation.wire_dtype, sparse=sparse)


def _full_round(
    federation: Federation,
    classifier: Classifier,
    client: tuple[ClientProfile, TokenizedExamples],
    download: Download,
    memory: ClientMemory,
) -> bytes:
    """One client of a method that trains every weight."""
    profile, examples = client
    start, number = download.adapter, download.server_round
    rng = generator(federation.seed, "train", number, profile.id)
    task = ClientTask(start, examples, None, epoch_orders(len(examples), federation.local_epochs, rng))
    changes, head, loss = train_full(classifier, task, memory.base, federation.training)
    update = difference(replace(start, head=head), start, frozenset())
    upload = Upload(number, profile.id, frozenset(), profile.num_examples, loss, None, update)
    frame = codec.encode_upload(upload, federation.layout, federation.wire_dtype)
    return codec.attach_base(frame, codec.BaseMessage(changes), federation.layout, federation.wire_dtype)


def _share_base(classifier: Classifier, memories: Sequence[ClientMemory]) -> None:
    """Puts the clients' base weights under the cohort.

    Raises:
        CodecError: they differ, and cannot train in one pass.
    """
    first = memories[0].base
    for memory in memories[1:]:
        if memory.base.keys() != first.keys() or not all(np.array_equal(v, memory.base[n]) for n, v in first.items()):
            raise CodecError("Clients of one cohort hold different base weights; train them one at a time.")
        memory.base = first
    classifier.set_base(first)


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
