"""The rounds of a run, whoever drives them: what a run is planned to do, who is notified of it, and the loop.

A driver says who is there, carries bytes between server and clients, and evaluates; the loop is the same for all.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from lora_a2.core.sampling import choose_cohort
from lora_a2.core.shown import count, shown
from lora_a2.core.types import EVERYTHING, ClientProfile, ServerState
from lora_a2.errors import ReplyError
from lora_a2.federation.agreement import Federation
from lora_a2.federation.bounds import WINDOW
from lora_a2.federation.exchange import ReplyCallback, RoundRules, Train
from lora_a2.federation.observer import Observer
from lora_a2.federation.options import PlanOptions
from lora_a2.federation.records import RoundRecord
from lora_a2.federation.scores import best_round, evaluations_since_best, out_of_patience, score
from lora_a2.federation.server import server_round
from lora_a2.tasks.registry import measured


@dataclass(frozen=True)
class Plan:
    """A federation together with who takes part, for how long, and how this machine goes about it.

    `clients_per_pass` clients go through one forward and backward; `num_workers` such groups are computed side by side
    (None: one a core on a CPU, one in all on an accelerator). At an evaluation a model that writes answers `generate` test prompts.
    After `early_stopping_patience` evaluations without a better score there are no more rounds (None: there are).
    `rules` say when a round counts.
    """

    federation: Federation
    profiles: tuple[ClientProfile, ...]
    num_server_rounds: int
    fraction_train: float = 1.0
    eval_every: int = 1
    generate: int = 0
    early_stopping_patience: int | None = None
    clients_per_pass: int = 1
    num_workers: int | None = None
    rules: RoundRules = field(default_factory=RoundRules)

    def __repr__(self) -> str:
        return shown(
            self,
            self.federation.method.name,
            count(len(self.profiles), "client"),
            count(self.num_server_rounds, "server round"),
        )

    def start(self) -> ServerState:
        """The state before round 1."""
        return ServerState(0, self.federation.initial, self.federation.seed)


@dataclass(frozen=True)
class Evaluated:
    """A round's metrics, and the bytes that were downloaded for them alone."""

    metrics: Mapping[str, Any]
    downloaded_bytes: int = 0


def make_schedule(
    federation: Federation,
    profiles: Sequence[ClientProfile],
    options: PlanOptions,
    rules: RoundRules | None = None,
) -> Plan:
    """The plan of a federation with these clients; rules that are not given follow from the options."""
    return Plan(
        federation=federation,
        profiles=tuple(profiles),
        num_server_rounds=options.num_server_rounds,
        fraction_train=options.fraction_train,
        eval_every=options.eval_every,
        generate=options.generate,
        early_stopping_patience=options.early_stopping_patience,
        clients_per_pass=options.clients_per_pass or 1,
        num_workers=options.num_workers,
        rules=rules or RoundRules(max_update_ratio=options.max_update_ratio or None),
    )


class Driver(Protocol):
    """How one kind of run reaches its clients."""

    def profiles(self, server_round: int) -> Sequence[ClientProfile]:
        """The clients from which this round's cohort is drawn."""

    def train(self, state: ServerState, cohort: Sequence[ClientProfile]) -> Train:
        """What carries the downloads of the round after `state` to the clients, and what they answer back."""

    def failed(self, server_round: int, error: ReplyError) -> None:
        """Is notified of a round with too few usable replies; returns to have it repeated, raises to end the run."""

    def phases(self, seconds: dict[str, float]) -> dict[str, float]:
        """The times of a round's phases, "train" among them, with that one divided further where the driver can."""

    def evaluate(self, state: ServerState) -> Evaluated:
        """A round's metrics."""


def run_rounds(
    plan: Plan,
    state: ServerState,
    driver: Driver,
    observer: Observer,
    callback: ReplyCallback | None = None,
    records: Sequence[RoundRecord] = (),
) -> Iterator[tuple[ServerState, RoundRecord]]:
    """Runs the rounds after `state` and yields state and record after each; `callback` is notified of every reply that counts.

    `records` are those of the rounds before, among them those that patience counts.

    Raises:
        ReplyError: as the driver's `failed` decides.
    """
    done = list(records)
    while state.server_round < plan.num_server_rounds:
        if out_of_patience(plan.early_stopping_patience, done):
            observer.note(_ended_early(state.server_round, done))
            return
        number = state.server_round + 1
        profiles = driver.profiles(number)
        cohort = choose_cohort(profiles, plan.fraction_train, plan.federation.seed, number)
        train = driver.train(state, cohort)
        try:
            rules = plan.rules.among(profiles)
            state, record = server_round(plan.federation, state, cohort, train, rules, callback, done[-WINDOW:])
        except ReplyError as error:
            driver.failed(number, error)
            state = replace(state, held={**state.held, **dict.fromkeys(error.lost, EVERYTHING)})
            continue
        record = replace(record, seconds=driver.phases(record.seconds))
        if number % plan.eval_every == 0 or number == plan.num_server_rounds:
            began = time.perf_counter()
            found = driver.evaluate(state)
            record = replace(
                record,
                metrics=dict(found.metrics),
                evaluation_bytes=found.downloaded_bytes,
                seconds={**record.seconds, "evaluate": time.perf_counter() - began},
            )
        done.append(record)
        observer.round_done(record)
        yield state, record


def _ended_early(server_round: int, records: Sequence[RoundRecord]) -> str:
    best = best_round(records)
    assert best is not None, "patience counts evaluations"
    task, value = measured(best.metrics), score(best)
    assert task is not None and value is not None, "it was evaluated"
    number = evaluations_since_best(records)
    return (
        f"Ended early, after round {server_round}: {number} evaluation{'' if number == 1 else 's'} without a better "
        f"{task.shown} than {task.show(value)} after round {best.server_round}."
    )
