"""Our side of the timings: rounds of the simulator, and the bare training inside them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import lora_a2
from exchange import Arrays
from lora_a2.core.randomness import generator
from lora_a2.core.sampling import choose_cohort
from lora_a2.core.types import Reply, ServerState
from lora_a2.engine.local import train_cohort
from lora_a2.engine.work import ClientTask, epoch_orders
from lora_a2.federation.loop import Plan
from lora_a2.federation.population import Client
from lora_a2.methods.base import trained_adapter
from lora_a2.simulation import make_pool, simulate
from workload import arrays_of


def rounds(model: lora_a2.Model, clients: Sequence[Client], plan: Plan, count: int = 1) -> float:
    """Seconds of the first `count` rounds of a run, from its records: from the first download to the new state.

    Every call starts from the same state, so all see the same tokens in the same order. Starting the workers is not counted.
    """
    seconds = 0.0
    with closing(simulate(model, clients, plan)) as run:
        for _ in range(count):
            _, record = next(run)
            seconds += sum(record.seconds.values())
    return seconds


def bare_round(model: lora_a2.Model, clients: Sequence[Client], plan: Plan) -> float:
    """Seconds of round 1's training alone, without messages, screening and aggregation. For methods that train all ranks."""
    federation = plan.federation
    trainable = federation.method.schedule(1)
    by_id = {client.id: client for client in clients}
    tasks = []
    for profile in choose_cohort(plan.profiles, plan.fraction_train, federation.seed, 1):
        client = by_id[profile.id]
        rng = generator(federation.seed, "train", 1, client.id)
        tasks.append(
            ClientTask(
                federation.initial, client.train, None, epoch_orders(len(client.train), federation.local_epochs, rng)
            )
        )
    with make_pool(model, plan) as pool:
        began = time.perf_counter()
        for _ in pool.map(lambda c, task: train_cohort(c, [task], trainable, federation.training), tasks):
            pass
        return time.perf_counter() - began


def results(model: lora_a2.Model, clients: Sequence[Client], plan: Plan) -> tuple[Arrays, list[Arrays]]:
    """Round 1's aggregated adapter, and each client's own as the server saw it, in the clients' order."""
    seen: dict[int, Arrays] = {}
    method = plan.federation.method

    def watched(replies: Iterable[Reply]) -> Iterable[Reply]:
        for reply in replies:
            seen[reply.profile.id] = arrays_of(trained_adapter(reply))
            yield reply

    def reduce(state: ServerState, replies: Iterable[Reply]) -> Any:
        return method.reduce(state, watched(replies))

    watching = replace(plan.federation, method=replace(method, reduce=reduce))
    with closing(simulate(model, clients, replace(plan, federation=watching))) as run:
        state, _ = next(run)
    return arrays_of(state.adapter), [seen[client.id] for client in clients]
