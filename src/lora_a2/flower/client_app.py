"""The ClientApp: it relays messages, and holds model and data only in the simulation engine.

A SuperNode starts a new process for every message. So the model stays in a worker that the node's operator starts, and
this process imports neither torch nor transformers: it forwards the request to the worker and sends back the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from lora_a2.errors import LoraA2Error
from lora_a2.flower.courier import log
from lora_a2.flower.messages import answer_message, error_message, read_request_content
from lora_a2.node.protocol import Answer, Request, ask, outgoing
from lora_a2.node.refusals import Reason, Refused, reason_of
from lora_a2.system.text import plain

if TYPE_CHECKING:
    from lora_a2.flower.simulated import LoadData

MOST_BYTES = 2**32
"""The largest answer that is accepted from a worker."""


def make_client_app(load_data: LoadData | None = None) -> ClientApp:
    """A ClientApp. `load_data` returns the data set of simulations; None: the run configuration names it."""
    app = ClientApp()
    handle = partial(respond, load_data)
    app.query("profile")(handle)
    app.train()(handle)
    app.evaluate()(handle)
    return app


def respond(load_data: LoadData | None, message: Message, context: Context) -> Message:
    """The reply to a message. The details of an error go to the log, and the server gets only a `Reason`: Flower would send
    the exception's text."""
    try:
        partition, total = _place(context)
        request, state_dir = read_request_content(message.content, partition, total)
        answer = _answerer(load_data, context, state_dir, message.metadata.ttl)(request)
        return answer_message(outgoing(answer), message)
    except LoraA2Error as error:
        log.error("%s", plain(error, 1000))
        return error_message(reason_of(error), message)
    except Exception as error:
        log.exception("Unexpected error.")
        return error_message(reason_of(error), message)


def _place(context: Context) -> tuple[int, int]:
    values = [context.node_config.get(key) for key in ("partition-id", "num-partitions")]
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        raise Refused(
            Reason.SETUP,
            "The node's configuration lacks partition-id or num-partitions: start the SuperNode with "
            "--node-config 'partition-id=0 num-partitions=3 worker-socket=\"/path/to/socket\"'.",
        )
    return int(str(values[0])), int(str(values[1]))


def _answerer(load_data: LoadData | None, context: Context, state_dir: str, ttl: float) -> Callable[[Request], Answer]:
    path = context.node_config.get("worker-socket")
    if path:
        return lambda request: ask(Path(str(path)), request, ttl, MOST_BYTES)
    if not in_simulation():
        raise Refused(
            Reason.SETUP,
            "The node's configuration names no worker-socket: start a worker with 'lora-a2 node --data FILE --socket PATH', "
            "and the SuperNode with --node-config 'worker-socket=\"PATH\" …'.",
        )
    from lora_a2.flower.simulated import participant

    return lambda request: participant(load_data, state_dir).answer(request)


def in_simulation() -> bool:
    """Whether this process is an actor of Flower's simulation engine. Ray, on which the engine runs, says so: Flower does not,
    and a server that could claim it would make a node train on data of the server's choice."""
    try:
        import ray
    except ImportError:
        return False
    return ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None


app = make_client_app()
