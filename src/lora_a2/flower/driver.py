"""The driver that reaches its clients through a Flower grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from flwr.app import Message

from lora_a2 import codec
from lora_a2.config.run import RunConfig
from lora_a2.config.setup import profile_of
from lora_a2.core.types import ALL_FACTORS, ClientProfile, Layout, ServerState
from lora_a2.errors import ReplyError
from lora_a2.federation.bounds import fair_share
from lora_a2.federation.exchange import Rejected, Train
from lora_a2.federation.holdings import Outbox
from lora_a2.federation.loop import Evaluated, Plan
from lora_a2.federation.observer import Observer
from lora_a2.federation.records import RoundRecord
from lora_a2.flower.absence import Absence
from lora_a2.flower.courier import NO_ANSWER, Courier, Late, log
from lora_a2.flower.messages import read_answer, received_bytes, request_content
from lora_a2.flower.options import ServerOptions, sent_config
from lora_a2.flower.roster import Roster
from lora_a2.node.protocol import PERSONAL, Kind, Request
from lora_a2.node.refusals import Reason
from lora_a2.system.text import plain
from lora_a2.tasks.base import Statistics, Task, evaluate, summed
from lora_a2.tasks.registry import measured

Sent = tuple[ClientProfile, bytes]
Received = tuple[ClientProfile, bytes | Rejected]


class FlowerDriver(Observer):
    """Rounds over the nodes of a roster.

    Args:
        run_id: names the run.
        config: resolved.
        labels: the class names.
        state_dir: where simulated clients keep their state.
        task: what the model is fine-tuned for.
        evaluate: the server's own evaluation, if it has one.
    """

    def __init__(
        self,
        courier: Courier,
        roster: Roster,
        plan: Plan,
        options: ServerOptions,
        *,
        run_id: str,
        config: RunConfig,
        labels: tuple[str, ...],
        state_dir: str,
        task: Task,
        evaluate: Callable[[ServerState], dict[str, Any]] | None,
    ) -> None:
        self._courier, self._roster, self._plan, self._options = courier, roster, plan, options
        self._run_id, self._config, self._labels, self._state_dir = run_id, config, labels, state_dir
        self._evaluate, self._task = evaluate, task
        self._nodes: dict[int, int] = {}
        self._last_round: dict[int, int] = {}
        self._attempts: dict[int, int] = {}
        self._slowest = 0.0
        self._absence = Absence()
        self._left_out: dict[int, str] = {}
        self._begun = False

    def round_done(self, record: RoundRecord) -> None:
        """Logs the round and remembers whose reply counted, also in the rounds before a resume."""
        self._last_round |= {client.id: record.server_round for client in record.clients}
        if not self._begun:
            self._recall(record)
        task = measured(record.metrics)
        value = "" if task is None else f"{task.shown} {task.show(record.metrics[task.primary])}, "
        log.info(
            "Round %d/%d: %sloss %.3f, %d replies, %d refused, %d bytes up, %d down, %.1f s.",
            *(record.server_round, self._plan.num_server_rounds, value, record.train_loss, len(record.clients)),
            *(len(record.refused), record.uploaded_bytes, record.downloaded_bytes, sum(record.seconds.values())),
        )
        for client, reason in sorted(record.refused.items()):
            log.warning("Round %d: client %d does not count: %s", record.server_round, client, reason)

    def note(self, text: str) -> None:
        """Logs it."""
        log.info("%s", text)

    def _recall(self, record: RoundRecord) -> None:
        """Restores from a round before the resume which clients did not answer."""
        for client in record.clients:
            self._absence.answered("train", client.id)
        for silent in (c for c, reason in record.refused.items() if reason.startswith(NO_ANSWER)):
            self._absence.silent("train", silent, record.server_round)

    def profiles(self, server_round: int) -> Sequence[ClientProfile]:
        """The clients online, once there are enough. Those that repeatedly do not answer are left out if enough others remain."""
        before, self._begun = self._nodes, True
        self._nodes = self._roster.gather(self._options.min_train_nodes)
        for client in self._nodes.keys() - before.keys() if before else ():
            self._absence.returned(client)
        reasons = {c: self._absence.reason("train", c, server_round) for c in sorted(self._nodes)}
        self._left_out = {client: reason for client, reason in reasons.items() if reason is not None}
        if len(self._nodes) - len(self._left_out) < self._options.min_train_nodes:
            self._left_out = {}
        return [self._profile(client) for client in sorted(self._nodes.keys() - self._left_out.keys())]

    def _profile(self, client: int) -> ClientProfile:
        return profile_of(self._config, client, self._roster.profile(client).num_examples)

    def failed(self, server_round: int, error: ReplyError) -> None:
        """Lets the round be repeated, at most `max_attempts` times in all, with the clients then online."""
        self._attempts[server_round] = self._attempts.get(server_round, 0) + 1
        log.warning("%s Attempt %d of %d.", error, self._attempts[server_round], self._options.max_attempts)
        if self._attempts[server_round] >= self._options.max_attempts:
            raise error

    def phases(self, seconds: dict[str, float]) -> dict[str, float]:
        """Splits the time spent waiting: the slowest node's training, and the rest, which is messages and processes."""
        slowest = min(self._slowest, seconds["train"])
        return {**seconds, "train": slowest, "exchange": seconds["train"] - slowest}

    def train(self, state: ServerState, cohort: Sequence[ClientProfile]) -> Train:
        """Sends the downloads and yields the replies in the cohort's order, so that sums do not depend on who was faster."""
        self._slowest = 0.0
        by_id = {profile.id: profile for profile in cohort}

        def train(downloads: Iterable[Sent]) -> Iterator[Received]:
            waiting: dict[int, bytes | Rejected] = {}
            due = iter(cohort)
            head = next(due, None)
            for client, reply in self._replies("train", downloads, state.server_round + 1):
                waiting[client] = reply
                while head is not None and head.id in waiting:
                    yield by_id[head.id], waiting.pop(head.id)
                    head = next(due, None)
            yield from ((by_id[c], reply) for c, reply in waiting.items())
            yield from ((self._profile(c), Rejected(reason)) for c, reason in self._left_out.items())
            yield from self._latecomers(by_id, state.server_round + 1)

        return train

    def evaluate(self, state: ServerState) -> Evaluated:
        """The global model's metrics, from the server if it can evaluate; clients' own models are evaluated on their nodes."""
        found = {} if self._evaluate is None else self._evaluate(state)
        if self._options.evaluation == "none" or (found and not self._plan.federation.method.private):
            return Evaluated(found)
        metrics, downloaded = self._on_nodes(state)
        return Evaluated({**metrics, **found}, downloaded)

    def _replies(
        self, kind: Kind, downloads: Iterable[Sent], server_round: int
    ) -> Iterator[tuple[int, bytes | Rejected]]:
        limit = upload_limit(self._plan.federation.layout, self._plan.federation.initial.rank)
        for client, reply in self._converse(kind, downloads, server_round):
            if isinstance(reply, str):
                yield client, Rejected(reply)
                continue
            try:
                answer = read_answer(reply, limit)
            except ReplyError as error:
                yield client, Rejected(str(error), received_bytes(reply), Reason.LOST in str(error))
                continue
            seconds = answer.metrics.get("train_seconds", 0.0)
            self._slowest = max(self._slowest, seconds if isinstance(seconds, int | float) else 0.0)
            for note in answer.notes:
                log.warning("Round %d: client %d: %s", server_round, client, note)
            yield client, answer.payload

    def _converse(
        self, kind: Kind, downloads: Iterable[Sent], server_round: int
    ) -> Iterator[tuple[int, Message | str]]:
        timeout = self._options.round_timeout

        def messages() -> Iterator[tuple[int, Message, int]]:
            for profile, data in downloads:
                content = request_content(self._request(kind, profile.id, data), self._folder(profile.id))
                node = self._nodes[profile.id]
                yield profile.id, Message(content, node, kind, ttl=2 * timeout, group_id=str(server_round)), len(data)

        for client, reply in self._courier.converse(messages(), timeout, f"Round {server_round}, {kind}"):
            if not isinstance(reply, str):
                self._absence.answered(kind, client)
            elif reply.startswith(NO_ANSWER):
                self._absence.silent(kind, client, server_round)
            yield client, reply

    def _request(self, kind: Kind, client: int, data: bytes) -> Request:
        return Request(
            kind=kind,
            run_id=self._run_id,
            run=sent_config(self._config),
            labels=self._labels,
            partition=client,
            num_partitions=self._roster.num_partitions,
            last_round=self._last_round.get(client, 0),
            payload=data,
        )

    def _folder(self, client: int) -> str:
        """The state folder for simulated nodes, which share this machine's disk; empty for others."""
        return self._state_dir if self._courier.simulated else ""

    def _latecomers(self, by_id: dict[int, ClientProfile], server_round: int) -> Iterator[Received]:
        client_of = {node: client for client, node in self._nodes.items()}
        for late in self._courier.late():
            client = client_of.get(late.node)
            log.warning("Round %d: a reply to an earlier message came too late, from node %d.", server_round, late.node)
            if client is not None and client in by_id:
                yield by_id[client], _too_late(late)

    def _on_nodes(self, state: ServerState) -> tuple[dict[str, Any], int]:
        """Metrics on the nodes' own test examples, of the model each would start from next and of its own model; and the
        bytes downloaded for this."""
        clients = [c for c in sorted(self._nodes) if self._roster.profile(c).num_test_examples]
        clients = [c for c in clients if not self._is_silent(c, state.server_round)]
        counts = {c: self._roster.profile(c).num_test_examples for c in clients}
        profiles = [self._profile(c) for c in clients]
        outbox, sent = Outbox(self._plan.federation, state), 0

        def downloads() -> Iterator[Sent]:
            nonlocal sent
            for profile in profiles:
                _, data = outbox.download(profile)
                sent += len(data)
                yield profile, data

        endings = ("", PERSONAL) if self._plan.federation.method.private else ("",)
        sums: dict[str, dict[int, Statistics]] = {ending: {} for ending in endings}
        for client, reply in self._converse("evaluate", downloads(), state.server_round):
            try:
                if isinstance(reply, str):
                    raise ReplyError(reply)
                metrics = read_answer(reply, 0).metrics
                stated = {e: self._stated(metrics, counts[client], e) for e in endings}
                for ending, found in stated.items():
                    sums[ending][client] = found
            except ReplyError as error:
                log.warning("Round %d: client %d was not evaluated: %s", state.server_round, client, error)
        most = self._options.max_node_test_examples or None
        if most is None and not self._courier.simulated:
            most = fair_share(list(counts.values()))
        figures = evaluation(self._task, sums[""], most)
        if figures and sums.get(PERSONAL):
            figures["personal"] = evaluation(self._task, sums[PERSONAL], most)
        return figures, sent

    def _stated(self, metrics: Mapping[str, object], count: int, ending: str) -> Statistics:
        own = {name.removesuffix(ending): value for name, value in metrics.items() if name.endswith(ending)}
        try:
            return self._task.received(own, count, self._config.max_length, bool(self._config.generate))
        except ValueError as error:
            raise ReplyError(f"The node states {plain(str(error), 120)}.") from None

    def _is_silent(self, client: int, server_round: int) -> bool:
        """Whether a client is not asked for an evaluation because it did not answer before."""
        reason = self._absence.reason("evaluate", client, server_round)
        return reason is not None or self._absence.missed("train", client) > 0


def evaluation(task: Task, sums: Mapping[int, Statistics], most: int | None) -> dict[str, Any]:
    """Metrics from each client's statistics; none weighs more than `most` examples (None: no limit)."""
    if not sums:
        return {}
    counts = {client: int(own["num_examples"]) for client, own in sums.items()}
    # What is counted of written texts is of few examples, and stays whole numbers.
    weighed = [
        own
        if most is None or counts[c] <= most
        else {name: value * most / counts[c] if name in task.shared else value for name, value in own.items()}
        for c, own in sums.items()
    ]
    return evaluate(task, summed(weighed), {str(client): own for client, own in sorted(sums.items())}).to_json()


def _too_late(late: Late) -> Rejected:
    return Rejected("A reply to an earlier message came too late.", received_bytes(late.message))


def upload_limit(layout: Layout, rank: int) -> int:
    """The largest size in bytes that an upload of the run can have."""
    values = codec.upload_parameters(layout, rank, None, frozenset(ALL_FACTORS))
    dense = sum(math.prod(shape) for _, shape in layout.base)
    return 4 * (values + dense) + values // 8 + 4 * len(layout.base) + 4096
