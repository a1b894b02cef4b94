"""A client that answers requests: its profile, a round of local training, an evaluation. Model and data stay loaded."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lora_a2 import codec
from lora_a2.clients import ClientMemory, Federation, client_round, personal, receive, received_base
from lora_a2.config import RunConfig, make_config
from lora_a2.errors import ConfigError, NodeError
from lora_a2.method import Method
from lora_a2.model.pretrained import Model
from lora_a2.node.protocol import Answer, Request
from lora_a2.node.store import ClientStore
from lora_a2.privacy.laplace import refuse_noise
from lora_a2.setup import federation_of, open_model, profile_of
from lora_a2.simulation import Client
from lora_a2.types import Adapter, Download

LoadClient = Callable[[RunConfig, Request, Model], Client]
"""The client's own data, tokenised for a model."""

_MODEL_FIELDS = ("model", "target_modules", "max_length", "head", "head_scale", "pooling", "dtype", "device", "seed")


@dataclass(frozen=True)
class _Seat:
    """A client's place in a run."""

    config: RunConfig
    federation: Federation
    model: Model
    client: Client
    store: ClientStore


class Participant:
    """Answers requests. The last model is kept; a run that asks for another one has it loaded in its place.

    Args:
        load_client: reads the client's data; called once for each model and partition.
        store: the folder of what clients keep from round to round.
        check: raises for a configuration that this node does not take part in.
        overrides: fields of the configuration that the node decides, such as its device.
    """

    def __init__(
        self,
        load_client: LoadClient,
        store: Path,
        check: Callable[[RunConfig], None] = lambda config: None,
        overrides: dict[str, Any] | None = None,
    ) -> None:
        self._load_client, self.store, self._check, self._overrides = load_client, store, check, overrides or {}
        self._loaded: tuple[Any, Model, dict[Any, Client]] | None = None
        self._federation: tuple[Any, Federation] | None = None

    def answer(self, request: Request) -> Answer:
        """What leaves the node for `request`.

        Raises:
            LoraA2Error: the request is refused, or something that it needs is missing.
        """
        seat = self._seat(request)
        handle = {"profile": _profile, "train": _train, "evaluate": _evaluate}[request.kind]
        return handle(seat, request)

    def _seat(self, request: Request) -> _Seat:
        config = make_config(request.run, {"num_clients": request.num_partitions})
        refuse_noise(config.laplace_epsilon)
        self._check(config)
        config = config.model_copy(update=self._overrides)
        model, clients = self._open(config, request)
        if (partition := request.partition) not in clients:
            clients[partition] = self._load_client(config, request, model)
        key = config, request.labels
        if self._federation is None or self._federation[0] != key:
            self._federation = key, federation_of(config, model)
        store = ClientStore(self.store, request.run_id, partition)
        return _Seat(config, self._federation[1], model, clients[partition], store)

    def _open(self, config: RunConfig, request: Request) -> tuple[Model, dict[Any, Client]]:
        key = tuple(getattr(config, name) for name in _MODEL_FIELDS), request.labels, request.num_partitions
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = None  # let go of the old model before the new one is loaded
            self._loaded = key, open_model(config, request.labels), {}
        return self._loaded[1], self._loaded[2]


def _profile(seat: _Seat, request: Request) -> Answer:
    return Answer(
        {
            "partition": request.partition,
            "num_partitions": request.num_partitions,
            "num_examples": len(seat.client.train),
            "num_test_examples": len(seat.client.test),
            "layout": seat.federation.layout.digest.hex(),
        }
    )


def _train(seat: _Seat, request: Request) -> Answer:
    download = _received(seat, request)
    number = download.server_round
    memory, notes = _recall(seat, request, number)
    profile = profile_of(seat.config, request.partition, len(seat.client.train))
    began = time.perf_counter()
    members = [(profile, seat.client.train)]
    uploads = client_round(seat.federation, seat.model.classifier, members, [request.payload], [memory])
    seconds = time.perf_counter() - began
    if _remembers(seat.federation.method):
        seat.store.keep(number, memory)
    return Answer({"train_seconds": seconds}, uploads[0], notes)


def _recall(seat: _Seat, request: Request, server_round: int) -> tuple[ClientMemory, tuple[str, ...]]:
    """What the client held before the round. A notice where something that the server counts on is lost.

    Raises:
        NodeError: only the last change of base weights came, and the weights that it changes are not here.
    """
    if not _remembers(seat.federation.method):
        return ClientMemory(), ()
    kept, memory = seat.store.before(server_round)
    message = codec.read_base(request.payload, seat.federation.layout)
    if message.update and not message.whole and kept != server_round - 1:
        raise NodeError(
            f"This node's base weights of round {server_round - 1} are lost; it will be sent all of them in the next round."
        )
    lost = bool(seat.federation.method.private) and request.last_round > 0 and not memory.private
    return memory, ("The private factors were lost; they start anew.",) * lost


def _evaluate(seat: _Seat, request: Request) -> Answer:
    download = _received(seat, request)
    memory, _ = _recall(seat, request, download.server_round)
    seat.model.classifier.set_base(received_base(seat.federation, request.payload, memory))
    metrics = {"num_examples": len(seat.client.test), "num_correct": _correct(seat, download.adapter)}
    if seat.federation.method.private:
        metrics["num_correct_personal"] = _correct(seat, personal(download.adapter, memory))
    return Answer(metrics)


def _correct(seat: _Seat, adapter: Adapter) -> int:
    """How many of the client's own test examples the model gets right."""
    test = seat.client.test
    if not len(test):
        return 0
    return int((seat.model.classifier.predict(adapter, test.input_ids).argmax(1) == test.labels).sum())


def _received(seat: _Seat, request: Request) -> Download:
    download = receive(seat.federation, request.payload)
    if download.client != request.partition:
        raise NodeError(f"The download is for client {download.client}; this is {request.partition}.")
    return download


def _remembers(method: Method) -> bool:
    """Whether clients of a method keep anything from round to round."""
    return bool(method.private) or method.base_rank is not None or method.full


def threads(count: int) -> None:
    """Computes on so many cores. With 1 the results are those of the simulator, where each client has one core."""
    torch.set_num_threads(count)


def overrides(device: str, dtype: str | None) -> dict[str, Any]:
    """What a node decides for itself, checked.

    Raises:
        ConfigError: no such number type.
    """
    config = make_config({}, {"device": device, "dtype": dtype})
    return {"device": config.device} if dtype is None else {"device": config.device, "dtype": config.dtype}


def check_model(model: str) -> Callable[[RunConfig], None]:
    """A check that a run uses the model which the node's operator agreed to."""

    def check(config: RunConfig) -> None:
        if config.model != model:
            raise ConfigError(
                f"The run asks for the model {config.model!r}, but this node was started for {model!r}: start the worker "
                "with --model, or the run with the other model."
            )

    return check
