"""A Flower grid in memory. Its nodes answer at once, or misbehave as a test says. Time passes only during `sleep`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr.app import Message
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from lora_a2.config.opening import open_data
from lora_a2.errors import LoraA2Error
from lora_a2.flower.courier import Courier
from lora_a2.flower.messages import answer_message, error_message, read_answer, read_request_content
from lora_a2.flower.simulated import _Split
from lora_a2.node.participant import Participant
from lora_a2.node.protocol import Answer, outgoing
from lora_a2.node.refusals import reason_of

Fault = Callable[["FakeGrid", int, Message, Message], "Message | None"]
"""(grid, partition, message, honest reply) → the reply, or None: nothing comes back."""


def honest(grid: FakeGrid, partition: int, message: Message, reply: Message) -> Message | None:
    """No fault."""
    return reply


@dataclass
class FakeGrid(Grid):
    """`total` nodes; node 100 + k is partition k.

    Attributes:
        online: the partitions that are online.
        fault: changes replies to train messages.
        sent: all replies of nodes, in order.
        arrivals: (time, reply): when each reply arrives.
        simulated: whether the server treats it as Flower's simulation engine.
    """

    store: Path
    total: int
    fault: Fault = honest
    online: set[int] = field(default_factory=set)
    sent: list[Message] = field(default_factory=list)
    arrivals: list[tuple[float, Message]] = field(default_factory=list)
    now: float = 0.0
    on_sleep: Callable[[FakeGrid], None] = lambda grid: None
    count: int = 0
    simulated: bool = True

    def __post_init__(self) -> None:
        self.online = self.online or set(range(self.total))
        # Messages get their run and task from the process.
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        self.participant = Participant(_Split(open_data), self.store)

    def courier(self) -> Courier:
        """A courier to these nodes."""
        return Courier(self, self.simulated, clock=lambda: self.now, sleep=self.sleep)

    def sleep(self, seconds: float) -> None:
        """Lets time pass."""
        self.now += seconds
        self.on_sleep(self)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Has each message answered."""
        return [self._handle(message) for message in messages]

    def _handle(self, message: Message) -> str:
        partition = message.metadata.dst_node_id - 100
        if partition not in self.online:
            return ""
        self.count += 1
        identity = f"message-{self.count}"
        message.metadata.__dict__["_message_id"] = identity
        reply = self.answer(partition, message)
        if reply is not None and message.metadata.message_type == "train":
            reply = self.fault(self, partition, message, reply)
        if reply is not None:
            self.deliver(reply, message)
        return identity

    def answer(self, partition: int, message: Message) -> Message | None:
        """What an honest node replies."""
        try:
            request, _ = read_request_content(message.content, partition, self.total)
            found = outgoing(self.participant.answer(request))
        except LoraA2Error as error:
            return error_message(reason_of(error), message)
        return answer_message(found, message)

    def deliver(self, reply: Message, message: Message, delay: float = 0.0) -> None:
        """Has a reply arrive after `delay` seconds."""
        self.sent.append(reply)
        reply.metadata.__dict__["_reply_to_message_id"] = message.metadata.message_id
        self.arrivals.append((self.now + delay, reply))

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies that have come to these messages."""
        wanted = set(message_ids)
        due = [r for t, r in self.arrivals if t <= self.now and r.metadata.reply_to_message_id in wanted]
        self.arrivals = [(t, r) for t, r in self.arrivals if not any(r is d for d in due)]
        return due

    def get_node_ids(self) -> list[int]:
        """The nodes online."""
        return [100 + k for k in sorted(self.online)]

    def get_nodes(self) -> list[NodeInfo]:
        """The same, with keys: it knows none."""
        return [NodeInfo(node_id=node) for node in self.get_node_ids()]

    def set_run(self, run: Run) -> None:
        """Not needed."""
        raise NotImplementedError

    @property
    def run(self) -> Run:
        """Not needed."""
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Deprecated in Flower."""
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Not used: it blocks until all replies are there."""
        raise NotImplementedError


def silent(grid: FakeGrid, partition: int, message: Message, reply: Message) -> Message | None:
    """The node was killed."""
    return None


def with_payload(reply: Message, message: Message, change: Callable[[bytes], bytes]) -> Message:
    """The reply with other bytes."""
    answer = read_answer(reply, sys.maxsize)
    return answer_message(Answer(answer.metrics, change(answer.payload), answer.notes), message)
