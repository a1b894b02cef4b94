"""Who is there: the nodes of a grid and the client that each of them is, asked once and checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flwr.app import Message, RecordDict

from lora_a2.errors import ReplyError, RunError
from lora_a2.flower.courier import Courier, log
from lora_a2.flower.messages import number, read_answer

PROFILE = "query.profile"
_LIMIT = 1 << 16
_MOST = 2**31 - 1
_LOOK_EVERY, _REPORT_EVERY, _ASK_AGAIN = 0.25, 10.0, 30.0


@dataclass(frozen=True)
class NodeProfile:
    """What a node states of itself. `simulated` nodes run in this machine's simulation engine."""

    partition: int
    num_partitions: int
    num_examples: int
    num_test_examples: int
    simulated: bool


class Roster:
    """The nodes that take part.

    A node that joins is asked once, and again after a while if it was refused; nobody waits for its answer but the first
    round.

    Args:
        courier: reaches them.
        content: the question for a profile.
        layout: the digest of the adapter's layout, in hex, that a node must derive too.
        fingerprint: of the base weights that a node must have too.
        node_timeout: how long to wait for enough nodes, and for a node's profile, in seconds.
    """

    def __init__(
        self,
        courier: Courier,
        content: Callable[[], RecordDict],
        layout: str,
        fingerprint: str,
        node_timeout: float,
    ) -> None:
        self._courier, self._content, self._layout, self._timeout = courier, content, layout, node_timeout
        self._fingerprint = fingerprint
        self._known: dict[int, NodeProfile] = {}
        self._asked: dict[str, tuple[int, float]] = {}
        self._refused: dict[int, tuple[str, float]] = {}
        self.num_partitions = 0

    def present(self) -> dict[int, int]:
        """Partition → node, of the nodes that are there now and have stated their profile."""
        online = set(self._courier.grid.get_node_ids())
        self._ask(online)
        self._hear()
        return {self._known[node].partition: node for node in sorted(online & self._known.keys())}

    def profile(self, partition: int) -> NodeProfile:
        """What the last node of this partition stated."""
        return next(profile for profile in reversed(self._known.values()) if profile.partition == partition)

    @property
    def simulated(self) -> bool:
        """Whether the nodes are those of a simulation engine."""
        return any(profile.simulated for profile in self._known.values())

    def gather(self, least: int, patience: float | None = None) -> dict[int, int]:
        """The nodes present, once they are `least`.

        With `patience`, in seconds, it waits that long for all the partitions that nodes announce, and for the profile of
        every node that is there.

        Raises:
            RunError: fewer than `least` within the node timeout.
        """
        began = self._courier.clock()
        next_report = began
        while True:
            found = self.present()
            waited = self._courier.clock() - began
            complete = len(found) >= max(least, self.num_partitions)
            if len(found) >= least and (patience is None or complete or (waited >= patience and not self._asked)):
                return found
            if len(found) < least and waited >= self._timeout:
                raise RunError(
                    f"{len(found)} of at least {least} nodes came within {self._timeout:.0f} s{self._complaints()}: "
                    "start them, or lower min-train-nodes; a run that has begun is continued with resume."
                )
            if self._courier.clock() >= next_report:
                wanted = least if patience is None else max(least, self.num_partitions)
                log.info(
                    "Waiting for nodes: %d there, %d wanted (limit %.0f s)%s.",
                    *(len(found), wanted, self._timeout if len(found) < least else patience or 0, self._complaints()),
                )
                next_report = self._courier.clock() + _REPORT_EVERY
            self._courier.sleep(_LOOK_EVERY)

    def _complaints(self) -> str:
        return "".join(f"; node {node} is refused: {reason}" for node, (reason, _) in sorted(self._refused.items()))

    def _ask(self, online: set[int]) -> None:
        """Asks those who are new, or whose refusal is a while ago."""
        now = self._courier.clock()
        self._refused = {node: why for node, why in self._refused.items() if node in online}
        waiting = {node for node, _ in self._asked.values()}
        settled = self._known.keys() | {node for node, (_, since) in self._refused.items() if now < since + _ASK_AGAIN}
        for node in sorted(online - waiting - settled):
            message = Message(self._content(), node, PROFILE, ttl=2 * self._timeout)
            for identity in self._courier.grid.push_messages([message]):
                if identity:
                    self._asked[identity] = node, now

    def _hear(self) -> None:
        """Admits or refuses those who have answered, in a fixed order, since of two for one partition the first stays."""
        now = self._courier.clock()
        replies = self._courier.grid.pull_messages(list(self._asked)) if self._asked else []
        heard: dict[int, Message | str] = {}
        for reply in replies:
            if (entry := self._asked.pop(reply.metadata.reply_to_message_id, None)) is not None:
                heard[entry[0]] = reply
        for identity, (node, since) in list(self._asked.items()):
            if now >= since + self._timeout:
                del self._asked[identity]
                heard[node] = f"No profile within {self._timeout:.0f} s."
        for node, found in sorted(heard.items()):
            try:
                if isinstance(found, str):
                    raise ReplyError(found)
                self._admit(node, self._read(found))
                self._refused.pop(node, None)
            except ReplyError as error:
                if self._refused.get(node, ("", 0.0))[0] != str(error):
                    log.warning("Node %d does not take part: %s", node, error)
                self._refused[node] = str(error), now

    def _read(self, reply: Message) -> NodeProfile:
        metrics = read_answer(reply, _LIMIT).metrics
        if metrics.get("layout") != self._layout:
            raise ReplyError(
                f"Its adapter's layout is {str(metrics.get('layout'))[:32]}; expected {self._layout}: give both ends the "
                "same model, and run the same release of lora-a2."
            )
        if metrics.get("fingerprint") != self._fingerprint:
            raise ReplyError(
                f"Its model has other weights (fingerprint {str(metrics.get('fingerprint'))[:12]}; the server's has "
                f"{self._fingerprint[:12]}): give both ends the same files."
            )
        total = number(metrics, "num_partitions", 1, _MOST)
        return NodeProfile(
            partition=number(metrics, "partition", 0, total - 1),
            num_partitions=total,
            num_examples=number(metrics, "num_examples", 1, _MOST),
            num_test_examples=number(metrics, "num_test_examples", 0, _MOST),
            simulated=metrics.get("simulated") == 1,
        )

    def _admit(self, node: int, profile: NodeProfile) -> None:
        self.num_partitions = self.num_partitions or profile.num_partitions
        if profile.num_partitions != self.num_partitions:
            raise ReplyError(f"It counts {profile.num_partitions} partitions; the others count {self.num_partitions}.")
        online = set(self._courier.grid.get_node_ids())
        for other, held in list(self._known.items()):
            if held.partition == profile.partition:
                if other in online:
                    raise ReplyError(f"Partition {profile.partition} is taken by node {other}.")
                del self._known[other]
        self._known[node] = profile
