"""The client half of a round, whoever drives it: receive, probe, select, train, finish, upload. Every payload crosses the codec.

The simulator calls `client_round` itself; a deployment calls it on the node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lora_a2 import codec
from lora_a2.core.algebra import difference
from lora_a2.core.randomness import generator
from lora_a2.core.transforms import Sending, sent
from lora_a2.core.types import ClientProfile, ClientState, Download, Factor, Mask, Upload
from lora_a2.engine.full import train_full, weight_gradients
from lora_a2.engine.local import CohortTraining
from lora_a2.engine.network import Network
from lora_a2.engine.work import ClientTask, TokenizedExamples, Trained
from lora_a2.errors import CodecError
from lora_a2.federation.agreement import Federation
from lora_a2.federation.holdings import personal, receive
from lora_a2.federation.probes import LocalRound
from lora_a2.methods.base import Finished

Member = tuple[ClientProfile, TokenizedExamples]
Answer = tuple[bytes, ClientState]
"""The encoded upload, and what the client keeps."""


def client_round(
    federation: Federation,
    network: Network,
    clients: Sequence[Member],
    downloads: Sequence[bytes],
    kept: Sequence[ClientState] | None = None,
) -> list[Answer]:
    """The client half of a round for K clients at once: probe, select, train, finish, upload.

    `kept` is what each held before; None for clients that begin. The answers come in the order of the clients.

    Raises:
        LostState: a client does not hold what its download builds on.
        CodecError: a download is not valid.
    """
    kept = [ClientState()] * len(clients) if kept is None else kept
    if network.alone and len(clients) > 1:
        each = zip(clients, downloads, kept, strict=True)
        return [answer for c, d, k in each for answer in client_round(federation, network, [c], [d], [k])]
    received = [receive(federation, data, state) for data, state in zip(downloads, kept, strict=True)]
    starts, states = [download for download, _ in received], [state for _, state in received]
    if federation.method.asks_gradients(starts[0].server_round):
        return [_gradient_round(federation, network, *each) for each in zip(clients, starts, states, strict=True)]
    if federation.method.full:
        return [_full_round(federation, network, *each) for each in zip(clients, starts, states, strict=True)]
    starts = [replace(d, adapter=personal(d.adapter, s.private)) for d, s in zip(starts, states, strict=True)]
    _share_base(network, states)
    return _lora_round(federation, network, clients, _share_starts(starts), states)


def _lora_round(
    federation: Federation,
    network: Network,
    clients: Sequence[Member],
    received: Sequence[Download],
    states: Sequence[ClientState],
) -> list[Answer]:
    method = federation.method
    work = _local_round(federation, network, clients, received)
    masks: Sequence[Mask | None] = [None] * len(clients)
    if method.select is None:
        training = work.training("train", work.local_epochs, None)
    else:
        masks, training = federation.probe(work)
    answers = []
    for (profile, _), download, state, mask, result in zip(
        clients, received, states, masks, training.run(), strict=True
    ):
        finished = Finished(result.adapter, mask)
        if method.finish is not None:
            finished = method.finish(download.adapter, result.adapter, download.server_round)
        data = _upload(federation, download, finished, result.train_loss, profile.num_examples)
        answers.append((data, replace(state, private=finished.adapter.tensors.of(*method.private))))
    return answers


def _local_round(
    federation: Federation, network: Network, clients: Sequence[Member], received: Sequence[Download]
) -> LocalRound:
    """The clients' training and selection, each with random numbers of its own."""
    method, server_round = federation.method, received[0].server_round
    trainable, settings = method.schedule(server_round), federation.training_in(server_round)

    def training(purpose: str, epochs: int, masks: Sequence[Mask] | None) -> CohortTraining:
        tasks = []
        each: Sequence[Mask | None] = [None] * len(clients) if masks is None else masks
        for (profile, examples), download, mask in zip(clients, received, each, strict=True):
            rng = generator(federation.seed, purpose, server_round, profile.id)
            tasks.append(ClientTask(download.adapter, examples, mask, settings.orders(len(examples), epochs, rng)))
        return CohortTraining(network, tasks, trainable, settings)

    def select(probed: Sequence[Trained]) -> list[Mask]:
        assert method.select is not None, "only methods that select are probed"
        masks = []
        for (profile, _), download, result in zip(clients, received, probed, strict=True):
            rng = generator(federation.seed, "select", server_round, profile.id)
            masks.append(method.select(download.adapter, result.adapter, trainable, profile.rank_budget, rng))
        return masks

    return LocalRound(training, select, federation.local_epochs)


def sending(federation: Federation, download: Download, shared: frozenset[Factor], mask: Mask | None) -> Sending:
    """What transforms know of an upload, at both ends."""
    settings = federation.training_in(download.server_round)
    return Sending(
        shared,
        mask,
        settings.learning_rate,
        settings.learning_rate_ratio,
        lambda purpose: generator(federation.seed, purpose, download.server_round, download.client),
    )


def upload_schema(federation: Federation) -> codec.UploadSchema:
    """How uploads are encoded."""
    method = federation.method
    return codec.UploadSchema(federation.layout, federation.wire_dtype, federation.sparse, method.factors)


def _upload(federation: Federation, download: Download, finished: Finished, train_loss: float, examples: int) -> bytes:
    """Encodes what the client sends: the difference in the shared factors, within the mask, transformed."""
    shared = download.shared
    update = difference(finished.adapter, download.adapter, shared, finished.mask)
    update = sent(federation.transforms, update, sending(federation, download, shared, finished.mask))
    upload = Upload(download.server_round, download.client, shared, examples, train_loss, finished.mask, update)
    return codec.encode(upload, upload_schema(federation))


def _full_round(
    federation: Federation, network: Network, client: Member, download: Download, state: ClientState
) -> Answer:
    """One client of a method that trains every weight."""
    profile, examples = client
    start, number = download.adapter, download.server_round
    rng = generator(federation.seed, "train", number, profile.id)
    settings = federation.training_in(number)
    task = ClientTask(start, examples, None, settings.orders(len(examples), federation.local_epochs, rng))
    changes, head, loss = train_full(network, task, state.base_delta, settings)
    update = difference(replace(start, head=head), start, frozenset())
    upload = Upload(number, profile.id, frozenset(), profile.num_examples, loss, None, update, changes)
    return codec.encode(upload, upload_schema(federation)), state


def _gradient_round(
    federation: Federation, network: Network, client: Member, download: Download, state: ClientState
) -> Answer:
    """One client that sends the gradient of the target weights at the start, of some of its examples."""
    profile, examples = client
    start, number = download.adapter, download.server_round
    assert federation.method.gradients is not None, "the method asks for gradients in this round"
    rng = generator(federation.seed, "gradient", number, profile.id)
    drawn = rng.permutation(len(examples))[: federation.method.gradients.examples]
    network.set_base(state.base_delta)
    gradients, loss = weight_gradients(network, start, examples.take(drawn), federation.training)
    update = difference(start, start, frozenset())
    upload = Upload(number, profile.id, frozenset(), profile.num_examples, loss, None, update, gradients)
    return codec.encode(upload, upload_schema(federation)), state


def _share_base(network: Network, states: Sequence[ClientState]) -> None:
    """Puts the clients' base weights under the model.

    Raises:
        CodecError: they differ, and cannot train in one pass.
    """
    first = states[0].base_delta
    for other in (state.base_delta for state in states[1:]):
        if other.keys() != first.keys() or not all(np.array_equal(v, other[n]) for n, v in first.items()):
            raise CodecError("Clients of one pass hold different base weights; train them one at a time.")
    network.set_base(first)


def _share_starts(downloads: list[Download]) -> list[Download]:
    """Gives downloads of equal content one adapter object, so that a common start is seen as common."""
    first = downloads[0].adapter
    values = first.tensors

    def same(other: Download) -> bool:
        tensors = other.adapter.tensors
        return other.adapter.rank == first.rank and all(np.array_equal(v, tensors[key]) for key, v in values.items())

    return [downloads[0], *(replace(d, adapter=first) if same(d) else d for d in downloads[1:])]
