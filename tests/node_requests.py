"""Requests to a node as a server makes them, and a worker in a thread that answers them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from federation import LABELS
from lora_a2.config.run import make_config
from lora_a2.config.setup import federation_of, open_model, profile_of, resolved
from lora_a2.core.types import ServerState
from lora_a2.federation.holdings import Outbox
from lora_a2.node.door import MESSAGE_SECONDS, Door
from lora_a2.node.own_data import OwnData
from lora_a2.node.participant import Participant, own_fields
from lora_a2.node.policy import Policy
from lora_a2.node.protocol import Request
from lora_a2.node.worker import Answerer, listening, reply_to


def run_of(model: str, **more: Any) -> dict[str, Any]:
    """A run's configuration as it is sent."""
    config = make_config({"model": model, "dtype": "float32", "r": 4, "local-epochs": 1, **more}, {})
    return config.model_dump(mode="json", by_alias=True, exclude_none=True)


def request(**changes: Any) -> Request:
    """A request for a profile, with `changes`."""
    values: dict[str, Any] = {
        "kind": "profile", "run_id": "a1", "run": {}, "labels": LABELS, "partition": 0, "num_partitions": 3
    }  # fmt: skip
    return Request(**{**values, **changes})


class Server:
    """The server half of a run on a tiny model: the downloads of its first round, and its requests."""

    def __init__(self, model: str, **options: Any) -> None:
        self.run = run_of(model, **options)
        config = make_config(self.run, {"num_clients": 3})
        self.config = resolved(config, opened := open_model(config, LABELS), 3)
        self.federation = federation_of(self.config, opened)
        self.state = ServerState(0, self.federation.initial, self.config.seed)

    def asks(self, kind: str, **changes: Any) -> Request:
        """A request of client 0 with the download of the round after `state`."""
        _, payload = Outbox(self.federation, self.state).download(profile_of(self.config, 0, 20))
        return request(**{"kind": kind, "run": self.run, "payload": payload, **changes})


def participant(data: str, model: str, store: Path, **policy: Any) -> Participant:
    """A node with its own model and data, and with that policy."""
    allowed = Policy.model_validate({key.replace("_", "-"): value for key, value in policy.items()})
    return Participant(OwnData(data), store, allowed, own_fields(model, "cpu", None))


@contextmanager
def working(path: Path, answer: Answerer, limit: int = 10**8, seconds: float = MESSAGE_SECONDS) -> Iterator[Door]:
    """A worker that answers in another thread, one request at a time."""
    with listening(path) as listener, Door(listener, limit, seconds) as door:

        def work() -> None:
            for call in door.calls():
                call.answer(reply_to(call.request, answer, call.gone.is_set))

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield door
        finally:
            door.close()
            thread.join(30)
        assert not thread.is_alive()
