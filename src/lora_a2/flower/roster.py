"""Who is there: the nodes of a grid and the client that each of them is, asked once and checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from flwr.app import Message, RecordDict

from lora_a2.errors import ReplyError, RunError
from lora_a2.flower.courier import Courier, log
from lora_a2.flower.messages import number, read_answer
from lora_a2.flower.places import NodeProfile, Places
from lora_a2.system.text import MOST_LINES, few, plain

PROFILE = "query.profile"
_LIMIT = 1 << 16
_MOST = 2**31 - 1
_LOOK_EVERY, _REPORT_EVERY, _ASK_AGAIN = 0.25, 10.0, 30.0


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
        places: how many partitions there are, and whose they are.
    """

    def __init__(
        self,
        courier: Courier,
        content: Callable[[], RecordDict],
        layout: str,
        fingerprint: str,
        node_timeout: float,
        places: Places | None = None,
    ) -> None:
        self._courier, self._content, self._layout, self._timeout = courier, content, layout, node_timeout
        self._fingerprint = fingerprint
        self.places = places or Places()
        self._known: dict[int, NodeProfile] = {}
        self._asked: dict[str, tuple[int, float]] = {}
        self._refused: dict[int, tuple[str, float]] = {}
        self._lines: Counter[int] = Counter()
        self._assigned: dict[int, NodeProfile] = {}

    @property
    def num_partitions(self) -> int:
        """How many clients the run has; 0: not known yet."""
        return self.places.total or 0

    def present(self) -> dict[int, int]:
        """Partition → node, of the nodes that are there now, have stated their profile and have a place."""
        online = self._courier.present()
        self._ask(set(online))
        self._hear(online)
        here = {node: (online[node], self._known[node]) for node in sorted(online.keys() & self._known.keys())}
        found = self.places.assign(here)
        for node in here.keys() - set(found.values()):
            self._refuse(node, f"All {self.num_partitions} places of the run are taken (num-clients).")
            del self._known[node]
        self._assigned |= {partition: self._known[node] for partition, node in found.items()}
        return found

    def profile(self, partition: int) -> NodeProfile:
        """What counts of the statement of the last node that had this partition."""
        return self._assigned[partition]

    def gather(self, least: int, patience: float | None = None) -> dict[int, int]:
        """The nodes present, once they are `least`.

        With `patience`, in seconds, it waits that long for all clients of the run, and for the profile of every node that is
        there; where the run's number of clients is not known, those who are there then are all it will have.

        Raises:
            RunError: fewer than `least` within the node timeout.
        """
        began = self._courier.clock()
        next_report = began
        while True:
            found = self.present()
            waited = self._courier.clock() - began
            complete = len(found) >= max(least, self.num_partitions) and self.num_partitions > 0
            if len(found) >= least and (patience is None or complete or (waited >= patience and not self._asked)):
                if self.places.total is None:
                    self.places.total = len(found)
                    log.warning(
                        "num-clients is not given: the run has the %d clients that are there now, and takes no others.",
                        len(found),
                    )
                    return self.present()
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
        lines = [f"node {node} is refused: {reason}" for node, (reason, _) in sorted(self._refused.items())]
        return "".join(f"; {line}" for line in few(lines))

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

    def _hear(self, online: Mapping[int, str]) -> None:
        """Admits or refuses those who have answered, in a fixed order."""
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
                profile = self._read(found)
            except ReplyError as error:
                self._refuse(node, str(error))
                continue
            self._refused.pop(node, None)
            if node in online:
                self._known[node] = self.places.admit(online[node], profile)

    def _refuse(self, node: int, reason: str) -> None:
        """Asks again after a while. The log is notified of it, but not for ever."""
        reason = plain(reason, 400)
        if self._refused.get(node, ("", 0.0))[0] != reason and self._lines[node] < MOST_LINES:
            self._lines[node] += 1
            log.warning("Node %d does not take part: %s", node, reason)
        self._refused[node] = reason, self._courier.clock()

    def _read(self, reply: Message) -> NodeProfile:
        metrics = read_answer(reply, _LIMIT).metrics
        if metrics.get("layout") != self._layout:
            raise ReplyError(
                f"Its adapter's layout is {plain(metrics.get('layout'), 32)}; expected {self._layout}: give both ends the "
                "same model, and run the same release of lora-a2."
            )
        if metrics.get("fingerprint") != self._fingerprint:
            raise ReplyError(
                f"Its model has other weights (fingerprint {plain(metrics.get('fingerprint'), 12)}; the server's has "
                f"{self._fingerprint[:12]}): give both ends the same files."
            )
        total = number(metrics, "num_partitions", 1, _MOST)
        profile = NodeProfile(
            partition=number(metrics, "partition", 0, _MOST),
            num_partitions=total,
            num_examples=number(metrics, "num_examples", 1, _MOST),
            num_test_examples=number(metrics, "num_test_examples", 0, _MOST),
        )
        if self._courier.simulated:  # the engine's nodes are this process's own, and know how many they are
            self.places.total = self.places.total or total
        return profile
