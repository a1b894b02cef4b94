"""Messages to nodes and their replies, over whatever grid: pushed as a window allows, awaited with a limit, none lost sight of."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from flwr.app import Message
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid

log = logging.getLogger("flwr.lora_a2")

Key = TypeVar("Key", bound=Hashable)

WINDOW = 256 * 2**20
"""Bytes of messages under way at once; the others wait, so that memory does not grow with the number of nodes."""
_PRESENCE_EVERY, _REPORT_EVERY = 5.0, 30.0


@dataclass(frozen=True)
class _Open(Generic[Key]):
    key: Key
    node: int
    size: int
    deadline: float


@dataclass(frozen=True)
class Late:
    """A reply to a message that is no longer waited for."""

    node: int
    message: Message


NO_ANSWER = "No answer within"
"""How the reason begins if nothing came in time."""


class Courier:
    """Talks to the nodes of a grid. `clock` (seconds) and `sleep` are the real ones outside of tests.

    `simulated` says whether the nodes are those of Flower's simulation engine, in this process's own hands: never a node tells.
    """

    def __init__(
        self,
        grid: Grid,
        simulated: bool,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.grid, self.simulated, self.clock, self.sleep = grid, simulated, clock, sleep
        self._given_up: dict[str, int] = {}
        self._late: list[Late] = []

    def present(self) -> dict[int, str]:
        """The nodes that are there, each with what tells it from others for good: its key, as far as the grid knows keys."""
        if self.simulated:  # the engine's nodes have new keys in every run
            return {node: f"node {node}" for node in self.grid.get_node_ids()}
        return {info.node_id: _identity(info) for info in self.grid.get_nodes()}

    def converse(
        self, messages: Iterable[tuple[Key, Message, int]], timeout: float, what: str
    ) -> Iterator[tuple[Key, Message | str]]:
        """Sends each message, with a key and its size in bytes, and yields the replies as they come.

        A text in the place of a reply says why there is none: nothing within `timeout` seconds of sending, or the node has
        gone. `what` names the conversation in the log.
        """
        source = iter(messages)
        waiting: dict[str, _Open[Key]] = {}
        began = last_report = last_presence = self.clock()
        held: tuple[Key, Message, int] | None = next(source, None)
        while held is not None or waiting:
            while held is not None and (not waiting or sum(o.size for o in waiting.values()) + held[2] <= WINDOW):
                if (refused := self._push(held, timeout, waiting)) is not None:
                    yield held[0], refused
                held = next(source, None)
            answered = False
            for identity, reply in self._pull(list(waiting)):
                answered = True
                yield waiting.pop(identity).key, reply
            now = self.clock()
            for identity, reason in self._overdue(waiting, now, now - last_presence >= _PRESENCE_EVERY, timeout):
                self._given_up[identity] = waiting[identity].node
                yield waiting.pop(identity).key, reason
            last_presence = now if now - last_presence >= _PRESENCE_EVERY else last_presence
            if waiting and now - last_report >= _REPORT_EVERY:
                keys = ", ".join(str(o.key) for o in list(waiting.values())[:8])
                log.info(
                    "%s: waiting for %d, %s, for %.0f s (limit %.0f s).", what, len(waiting), keys, now - began, timeout
                )
                last_report = now
            if waiting and not answered:
                self.sleep(min(1.0, max(0.05, 0.02 * (now - began))))

    def late(self) -> list[Late]:
        """The replies that came since the last call to messages that had been given up."""
        found, self._late = self._late, []
        return found

    def _push(self, item: tuple[Key, Message, int], timeout: float, waiting: dict[str, _Open[Key]]) -> str | None:
        key, message, size = item
        identities = [identity for identity in self.grid.push_messages([message]) if identity]
        if not identities:
            return "The message could not be sent: the node has gone."
        waiting[identities[0]] = _Open(key, message.metadata.dst_node_id, size, self.clock() + timeout)
        return None

    def _pull(self, identities: list[str]) -> Iterator[tuple[str, Message]]:
        wanted = [*identities, *self._given_up]
        for reply in self.grid.pull_messages(wanted) if wanted else ():
            identity = reply.metadata.reply_to_message_id
            if identity in self._given_up:
                node = self._given_up.pop(identity)
                if not reply.has_error():  # an error is the grid's word that nothing will come
                    self._late.append(Late(node, reply))
            elif identity in identities:
                yield identity, reply

    def _overdue(
        self, waiting: dict[str, _Open[Key]], now: float, check_presence: bool, timeout: float
    ) -> list[tuple[str, str]]:
        present = set(self.grid.get_node_ids()) if check_presence and waiting else None
        found = []
        for identity, item in waiting.items():
            if now >= item.deadline:
                found.append((identity, f"{NO_ANSWER} {timeout:.0f} s."))
            elif present is not None and item.node not in present:
                found.append((identity, "The node has gone offline."))
        return found


def _identity(info: NodeInfo) -> str:
    """A digest of a node's public key."""
    key = bytes(info.public_key)
    return f"key {hashlib.sha256(key).hexdigest()[:32]}" if key else f"node {info.node_id}"
