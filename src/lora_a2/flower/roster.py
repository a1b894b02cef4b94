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
_ASK_AGAIN = 30.0
"""Seconds after which a refused node is asked again: its worker may be there by then."""


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

    Args:
        courier: reaches them.
        content: the question for a profile.
        layout: the digest of the adapter's layout, in hex, that a node must derive too.
        node_timeout: how long to wait for enough nodes, and for a node's profile, in seconds.
    """

    def __init__(self, courier: Courier, content: Callable[[], RecordDict], layout: str, node_timeout: float) -> None:
        self._courier, self._content, self._layout, self._timeout = courier, content, layout, node_timeout
        self._known: dict[int, NodeProfile] = {}
        self._refused: dict[int, tuple[str, float]] = {}
        self.num_partitions = 0

    def present(self) -> dict[int, int]:
        """Partition → node, of the nodes that are there now; new ones are asked for their profile, refused ones again."""
        online = set(self._courier.grid.get_node_ids())
        recently = self._courier.clock() - _ASK_AGAIN
        refused = {node for node, (_, when) in self._refused.items() if when > recently}
        self._ask(sorted(online - self._known.keys() - refused))
        self._refused = {n: why for n, why in self._refused.items() if n in online and n not in self._known}
        return {self._known[node].partition: node for node in sorted(online & self._known.keys())}

    def profile(self, partition: int) -> NodeProfile:
        """What the last node of this partition stated."""
        return next(profile for profile in reversed(self._known.values()) if profile.partition == partition)

    @property
    def simulated(self) -> bool:
        """Whether the nodes are those of a simulation engine."""
        return any(profile.simulated for profile in self._known.values())

    def gather(self, wanted: Callable[[], int], least: int, patience: float) -> dict[int, int]:
        """The nodes present, once they are `wanted()`, or `least` at the end of `patience` seconds.

        Raises:
            RunError: fewer than `least` within the node timeout.
        """
        began = last_report = self._courier.clock()
        while True:
            found = self.present()
            waited = self._courier.clock() - began
            enough = len(found) >= least
            if enough and (len(found) >= wanted() or waited >= patience):
                return found
            if not enough and waited >= self._timeout:
                raise RunError(
                    f"{len(found)} of at least {least} nodes came within {self._timeout:.0f} s{self._complaints()}: "
                    "start them, or lower min-train-nodes; a run that has begun is continued with resume."
                )
            if self._courier.clock() - last_report >= 10 or waited == 0:
                limit = patience if enough else self._timeout
                log.info(
                    "Waiting for nodes: %d there, %d wanted (limit %.0f s)%s.",
                    *(len(found), max(least, wanted()), limit, self._complaints()),
                )
                last_report = self._courier.clock()
            self._courier.sleep(1.0)

    def _complaints(self) -> str:
        return "".join(f"; node {node} is refused: {reason}" for node, (reason, _) in sorted(self._refused.items()))

    def _ask(self, nodes: list[int]) -> None:
        questions = ((n, Message(self._content(), n, PROFILE, ttl=2 * self._timeout), 1) for n in nodes)
        replies = dict(self._courier.converse(questions, self._timeout, "Profiles"))
        for node in nodes:  # in a fixed order, since the first of two nodes with one partition is the one that stays
            try:
                reply = replies[node]
                if isinstance(reply, str):
                    raise ReplyError(reply)
                self._admit(node, self._read(reply))
            except ReplyError as error:
                self._refused[node] = str(error), self._courier.clock()
                log.warning("Node %d does not take part: %s", node, error)

    def _read(self, reply: Message) -> NodeProfile:
        metrics = read_answer(reply, _LIMIT).metrics
        if metrics.get("layout") != self._layout:
            raise ReplyError(
                f"Its adapter's layout is {str(metrics.get('layout'))[:32]}; expected {self._layout}: give both ends the "
                "same model, and run the same release of lora-a2."
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
