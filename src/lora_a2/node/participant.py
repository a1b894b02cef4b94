"""A client that answers requests: its profile, a round of local training, an evaluation. Model and data stay loaded."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lora_a2 import codec
from lora_a2.config.run import RunConfig, make_config
from lora_a2.config.setup import federation_of, open_model, profile_of
from lora_a2.core.types import Adapter, ClientState
from lora_a2.federation.agreement import Federation
from lora_a2.federation.client import client_round
from lora_a2.federation.holdings import personal, receive
from lora_a2.federation.population import Client
from lora_a2.model.config import ModelConfig
from lora_a2.model.pretrained import Model
from lora_a2.node.logs import log
from lora_a2.node.policy import NO_LIMITS, Policy
from lora_a2.node.protocol import PERSONAL, Answer, Request
from lora_a2.node.refusals import Note, Reason, Refused
from lora_a2.node.store import ClientStore
from lora_a2.privacy.laplace import refuse_noise
from lora_a2.settings.options import marks_of
from lora_a2.tasks.base import Statistics, flattened, summed
from lora_a2.tasks.causal_lm.scores import text_statistics
from lora_a2.tasks.causal_lm.writing import answers, chosen_examples, prompt_of, require_writing
from lora_a2.tasks.options import WritingOptions

LoadClient = Callable[[RunConfig, Request, Model], Client]
"""Loads the client's own data, tokenised for a model."""


def taken_fields() -> tuple[str, ...]:
    """The fields of a run that a node takes from a request: those declared with reach "nodes". Model, data, device, code and
    files are the node's own."""
    return tuple(name for name, field in RunConfig.model_fields.items() if marks_of(field).reach == "nodes")


_EVALUATED_AT_ONCE = 64
"""The batch of `Network.measure`."""


@dataclass(frozen=True)
class _Seat:
    """A client's place in a run, for one request; `go_on` raises once the request is to be abandoned."""

    config: RunConfig
    federation: Federation
    model: Model
    client: Client
    store: ClientStore
    policy: Policy
    go_on: Callable[[], None]


class Participant:
    """Answers requests. The last model stays loaded; a run with another model replaces it.

    Args:
        load_client: reads the client's data; called once for each model and partition.
        store: the folder for what clients keep from round to round.
        policy: what is allowed.
        own: the fields of the configuration that the node decides, such as its model; None if it decides none, as in a
            simulation.
    """

    def __init__(
        self, load_client: LoadClient, store: Path, policy: Policy = NO_LIMITS, own: Mapping[str, Any] | None = None
    ) -> None:
        self._load_client, self.store, self._policy, self._own = load_client, store, policy, own
        self._loaded: tuple[object, Model, dict[int, Client]] | None = None
        self._federation: tuple[object, Federation] | None = None

    def answer(self, request: Request, gone: Callable[[], bool] = lambda: False) -> Answer:
        """The answer to `request`; abandoned between two steps once its sender has `gone`.

        Raises:
            LoraA2Error: the request is refused, or something that it needs is missing.
        """
        handle = {"profile": _profile, "train": _train, "evaluate": _evaluate}[request.kind]
        return handle(self._seat(request, self._patience(gone)), request)

    def _patience(self, gone: Callable[[], bool]) -> Callable[[], None]:
        limit = self._policy.max_seconds
        deadline = time.monotonic() + limit

        def go_on() -> None:
            if gone():
                raise Refused(Reason.LATE, "its sender has gone.")
            if time.monotonic() > deadline:
                raise Refused(Reason.POLICY, f"more than the policy's max-seconds = {limit} have passed.")

        return go_on

    def _seat(self, request: Request, go_on: Callable[[], None]) -> _Seat:
        config = self._config(request)
        model, clients = self._open(config, request)
        self._policy.check_model(model.fingerprint)
        if (partition := request.partition) not in clients:
            if self._own is not None:
                clients.clear()  # a node is one client, whatever its partition
            clients[partition] = self._load_client(config, request, model)
        key = config, request.labels
        if self._federation is None or self._federation[0] != key:
            self._federation = key, federation_of(config, model)
        federation = self._federation[1]
        federation = replace(federation, training=replace(federation.training, between_steps=go_on))
        store = ClientStore(self.store, request.run_id, partition)
        return _Seat(config, federation, model, clients[partition], store, self._policy, go_on)

    def _config(self, request: Request) -> RunConfig:
        asked = make_config(request.run, {"num_clients": request.num_partitions})
        refuse_noise(asked)
        self._policy.check(asked, request.labels)
        if self._own is None:
            return asked
        taken = {name: getattr(asked, name) for name in ("num_clients", *taken_fields())}
        return RunConfig().model_copy(update={**taken, **self._own})

    def _open(self, config: RunConfig, request: Request) -> tuple[Model, dict[int, Client]]:
        parts = config.task, config.part(ModelConfig), config.part(WritingOptions)
        key = *parts, config.seed, request.labels, request.num_partitions
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = None  # free the old model before the new one is loaded
            model = open_model(config, request.labels)
            self._loaded = key, model, {}
            log.info("Loaded the model %s; its fingerprint is %s.", config.model, model.fingerprint)
        return self._loaded[1], self._loaded[2]


def _profile(seat: _Seat, request: Request) -> Answer:
    policy = seat.policy
    return Answer(
        {
            "partition": request.partition,
            "num_partitions": request.num_partitions,
            "num_examples": policy.stated(len(seat.client.train)),
            "num_test_examples": policy.stated(len(seat.client.test)) if policy.evaluation else 0,
            "layout": seat.federation.layout.digest.hex(),
            "fingerprint": seat.model.fingerprint,
        }
    )


def _train(seat: _Seat, request: Request) -> Answer:
    kept, notes = _kept(seat, request)
    profile = profile_of(seat.config, request.partition, seat.policy.stated(len(seat.client.train)))
    began = time.perf_counter()
    members = [(profile, seat.client.train)]
    [(upload, state)] = client_round(seat.federation, seat.model.network, members, [request.payload], [kept])
    seconds = time.perf_counter() - began
    seat.store.keep(state)
    return Answer({"train_seconds": seconds}, upload, notes)


def _kept(seat: _Seat, request: Request) -> tuple[ClientState, tuple[str, ...]]:
    """The client's state before the round of its download, and a note if its private factors are lost.

    Raises:
        Refused: the round is not allowed, or the download is another client's.
    """
    address = codec.read_address(request.payload, seat.federation.layout)
    evaluated = request.kind == "evaluate"  # what is evaluated after a round is the download of the next
    seat.policy.check_round(address.server_round - evaluated)
    if address.client != request.partition:
        raise Refused(Reason.DOWNLOAD, f"the download is for client {address.client}; this is {request.partition}.")
    kept = seat.store.before(address.server_round)
    lost = bool(seat.federation.method.private) and request.last_round > 0 and not kept.private
    return kept, (Note.PRIVATE_LOST,) * lost


def _evaluate(seat: _Seat, request: Request) -> Answer:
    seat.policy.check_evaluation()
    kept, _ = _kept(seat, request)
    download, state = receive(seat.federation, request.payload, kept)
    seat.model.network.set_base(state.base_delta)
    stated = seat.policy.stated(len(seat.client.test))
    metrics = _sums(seat, download.adapter, stated)
    if seat.federation.method.private:
        own = _sums(seat, personal(download.adapter, kept.private), stated)
        metrics |= {f"{name}{PERSONAL}": value for name, value in own.items() if name != "num_examples"}
    return Answer(metrics)


def _sums(seat: _Seat, adapter: Adapter, stated: int) -> dict[str, Any]:
    """The shared statistics of the client's own test examples, scaled to the number `stated` of them."""
    task, test = seat.model.task, seat.client.test
    parts: list[Statistics] = []
    order = np.argsort([len(ids) for ids in test.input_ids], kind="stable")  # the same batches as one call of `predict`
    for start in range(0, len(order), _EVALUATED_AT_ONCE):
        seat.go_on()
        rows = order[start : start + _EVALUATED_AT_ONCE]
        part = test.take(rows)
        parts.append(task.statistics(seat.model.network.measure(adapter, part), part.labels))
    total = summed(parts)
    scale = stated / len(test)
    found = {name: total[name].item() * scale for name in task.shared}
    sums = {name: round(value) if total[name].dtype.kind == "i" else value for name, value in found.items()}
    return sums | _texts(seat, adapter, stated)


def _texts(seat: _Seat, adapter: Adapter, stated: int) -> dict[str, Any]:
    """The statistics of what the model writes to some of the client's own prompts, a number each: its texts stay here."""
    if not seat.config.generate:
        return {}
    require_writing(seat.model)
    test = seat.client.test
    rows = chosen_examples(test, min(seat.config.generate, stated), seat.config.seed)
    part = test.take(rows)
    assert isinstance(part.labels, tuple), "the model writes"
    prompts = [prompt_of(ids, labels) for ids, labels in zip(part.input_ids, part.labels, strict=True)]
    texts: list[str] = []
    for prompt in prompts:
        seat.go_on()
        texts += answers(seat.model, seat.model.network, adapter, [prompt])
    return flattened(text_statistics(texts, part.references))


def threads(count: int) -> None:
    """Sets the number of cores to compute on. With 1 the results equal the simulator's, where each client has one core."""
    torch.set_num_threads(count)


def own_fields(model: str, device: str, dtype: str | None, trust_remote_code: bool = False) -> dict[str, Any]:
    """The fields that a node decides, checked; without a `dtype` the run's is used.

    Raises:
        ConfigError: `dtype` is unknown.
    """
    given = {"model": model, "device": device, "dtype": dtype, "trust_remote_code": trust_remote_code}
    config = make_config({}, given)
    return {name: getattr(config, name) for name, value in given.items() if value is not None}
