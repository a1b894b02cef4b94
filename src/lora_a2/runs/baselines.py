"""Trains what a run is compared with, and measures it on the same clients' test examples.

`local` is a federation of the client alone: in each round that it took part in, its local epochs, with the round's learning
rates and AdamW afresh. `centralised` is a federation whose only client has all data, for as many rounds as a client took part
in on average, by number of examples. Both are plain LoRA at the run's rank. `tuned` goes on from the run's result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lora_a2.analysis.baselines import BASELINES_FILE, read_baselines
from lora_a2.config.baselines import CENTRALISED, LOCAL
from lora_a2.config.run import RunConfig
from lora_a2.core.algebra import add, difference, initial_adapter
from lora_a2.core.randomness import generator
from lora_a2.core.types import Adapter, BaseDelta, ClientState, Factor, ServerState
from lora_a2.engine.evaluate import measure
from lora_a2.engine.local import train_cohort
from lora_a2.engine.network import Network
from lora_a2.engine.pool import Pool
from lora_a2.engine.work import ClientTask, TokenizedExamples, TrainingSettings, end_to_end
from lora_a2.federation.holdings import personal
from lora_a2.federation.loop import Plan
from lora_a2.federation.observer import Observer
from lora_a2.federation.population import Client
from lora_a2.federation.records import RoundRecord
from lora_a2.model.pretrained import Model, layout_head
from lora_a2.runs.directory import RunDirectory
from lora_a2.simulation import ClientStates, make_pool
from lora_a2.system.files import write_sealed
from lora_a2.tasks.base import Task

TUNED = "tuned"
_PLAIN: frozenset[Factor] = frozenset({"A", "B"})

Measured = dict[str, dict[str, Any]]
"""Client name → its metrics, the number of its test examples, and the steps that its model was trained for."""


@dataclass(frozen=True)
class Stage:
    """Epochs of one AdamW: the settings, and the order of the examples in each epoch."""

    settings: TrainingSettings
    orders: tuple[np.ndarray, ...]

    @property
    def steps(self) -> int:
        """Of AdamW."""
        return sum(-(-len(order) // self.settings.step_examples) for order in self.orders)


@dataclass(frozen=True)
class Baseline:
    """A model to be trained.

    Attributes:
        kind: `local`, `centralised` or `tuned`.
        train: all its examples.
        clients: on whose test examples it is measured.
        start, base: the adapter before the first stage, and how far the frozen weights under it have moved.
        trainable: the factors that are trained.
        stages: one after the other.
    """

    kind: str
    train: TokenizedExamples
    clients: tuple[Client, ...]
    start: Adapter
    base: BaseDelta
    trainable: frozenset[Factor]
    stages: tuple[Stage, ...]


@dataclass(frozen=True)
class Result:
    """What a run came to: the round whose model it is, its state, what clients keep, and the rounds up to that one."""

    state: ServerState
    kept: ClientStates
    records: Sequence[RoundRecord]


def add_baselines(
    run: RunDirectory,
    config: RunConfig,
    model: Model,
    plan: Plan,
    clients: Sequence[Client],
    result: Result,
    observer: Observer,
) -> dict[str, Measured]:
    """Computes the configuration's baselines that `baselines.json` lacks and writes each as it is done; all of them.

    Clients without test examples have none, and a client that took part in no round has no `local`.

    Raises:
        RunError: the file is damaged, or cannot be written.
    """
    number = result.state.server_round
    found: dict[str, Measured] = read_baselines(run.path, number)
    wanted = list(_wanted(config, model, plan, clients, result))
    missing = [b for b in wanted if any(c.name not in found.get(b.kind, {}) for c in b.clients)]
    if not missing:
        return found
    observer.note(f"Does joining help? Training {len(missing)} models to compare with: {_listed(missing)}.")
    observer.baselines_done(0, len(missing))
    with make_pool(model, plan) as pool:
        done = pool.map(_work(model.task, missing), range(len(missing)))
        for k, (baseline, measured) in enumerate(zip(missing, done, strict=True)):
            found.setdefault(baseline.kind, {}).update(measured)
            with run.writing():
                write_sealed(run.path / BASELINES_FILE, {"server_round": number, "kinds": found})
            observer.baselines_done(k + 1, len(missing))
    return found


def _listed(baselines: Sequence[Baseline]) -> str:
    counts = {kind: sum(b.kind == kind for b in baselines) for kind in dict.fromkeys(b.kind for b in baselines)}
    return ", ".join(f"{count} {kind}" for kind, count in counts.items())


def _work(task: Task, baselines: Sequence[Baseline]) -> Callable[[Network, int], Measured]:
    """Trains and measures one of them, by its number: forked workers have the examples already."""

    def work(network: Network, number: int) -> Measured:
        baseline = baselines[number]
        adapter = trained(network, baseline)
        steps = sum(stage.steps for stage in baseline.stages)
        measured = {}
        for client in baseline.clients:
            outputs = measure(Pool(network), adapter, baseline.base, client.test)
            metrics = task.metrics(task.statistics(outputs, client.test.labels))
            measured[client.name] = {**metrics, "num_examples": len(client.test), "steps": steps}
        return measured

    return work


def trained(network: Network, baseline: Baseline) -> Adapter:
    """The adapter after all stages."""
    network.set_base(baseline.base)
    adapter = baseline.start
    for stage in baseline.stages:
        task = ClientTask(adapter, baseline.train, None, stage.orders)
        after = train_cohort(network, [task], baseline.trainable, stage.settings)[0].adapter
        # As a server adds what its only client uploads: AdamW makes much of the last bits where a gradient is almost zero.
        adapter = add(adapter, difference(after, adapter, baseline.trainable))
    return adapter


def _wanted(
    config: RunConfig, model: Model, plan: Plan, clients: Sequence[Client], result: Result
) -> Iterator[Baseline]:
    """Those of the configuration, in the order in which they are computed."""
    tested = [client for client in clients if len(client.test)]
    if LOCAL in (config.baselines or ()):
        for client in tested:
            if (one := local(config, model, plan, client, result.records)).stages:
                yield one
    if config.personalize:
        yield from (tuned(config, plan, client, result) for client in tested)
    if CENTRALISED in (config.baselines or ()) and tested:
        yield centralised(config, model, plan, clients, result.records)


def _start(config: RunConfig, model: Model) -> Adapter:
    """That of plain LoRA at the run's rank, as a federation with this seed begins."""
    rng = generator(config.seed, "adapter")
    return initial_adapter(model.layout, config.r, config.lora_alpha, rng, layout_head(model))


def _plain(settings: TrainingSettings) -> TrainingSettings:
    """Without what a method or noise adds to local training."""
    return replace(settings, penalties=(), clipping_norm=None)


def _stage(plan: Plan, settings: TrainingSettings, server_round: int, client: int, examples: int) -> Stage:
    """A client's local epochs in a round, in the order that the round gave its examples."""
    federation = plan.federation
    rng = generator(federation.seed, "train", server_round, client)
    return Stage(settings, settings.orders(examples, federation.local_epochs, rng))


def local(config: RunConfig, model: Model, plan: Plan, client: Client, records: Sequence[RoundRecord]) -> Baseline:
    """A client alone, in the rounds that it took part in."""
    rounds = [r.server_round for r in records if any(c.id == client.id for c in r.clients)]
    stages = tuple(
        _stage(plan, _plain(plan.federation.training_in(n)), n, client.id, len(client.train)) for n in rounds
    )
    return Baseline(LOCAL, client.train, (client,), _start(config, model), {}, _PLAIN, stages)


def centralised(
    config: RunConfig, model: Model, plan: Plan, clients: Sequence[Client], records: Sequence[RoundRecord]
) -> Baseline:
    """All training examples in one place: as many epochs as an example had on average, spread over all rounds.

    Where a round's steps are limited, those here are as many as all clients together would make.
    """
    pooled = end_to_end([client.train for client in clients])
    sizes = {client.id: len(client.train) for client in clients}
    seen = sum(sizes[c.id] for record in records for c in record.clients)
    count = max(1, round(seen / len(pooled)))
    rounds = np.linspace(1, len(records), count).round().astype(int).tolist() if count > 1 else [1]

    def settings(server_round: int) -> TrainingSettings:
        own = _plain(plan.federation.training_in(server_round))
        if own.max_steps is None:
            return own
        return replace(own, max_steps=sum(own.steps(n, plan.federation.local_epochs) for n in sizes.values()))

    stages = tuple(_stage(plan, settings(n), n, 0, len(pooled)) for n in rounds)
    tested = tuple(client for client in clients if len(client.test))
    return Baseline(CENTRALISED, pooled, tested, _start(config, model), {}, _PLAIN, stages)


def tuned(config: RunConfig, plan: Plan, client: Client, result: Result) -> Baseline:
    """The run's result, or the client's own model if the method makes such, after epochs on the client's data.

    Plain LoRA at the full learning rates; of methods that train a core, that core.
    """
    federation, state = plan.federation, result.state
    start = personal(state.adapter, result.kept.get(client.id, ClientState()).private)
    settings = replace(_plain(federation.training), max_steps=None)
    rng = generator(federation.seed, "personalize", state.server_round, client.id)
    stage = Stage(settings, settings.orders(len(client.train), config.personalize, rng))
    trainable = federation.method.schedule(state.server_round) if federation.method.core else _PLAIN
    return Baseline(TUNED, client.train, (client,), start, state.base, trainable, (stage,))
