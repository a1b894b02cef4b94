"""The in-process driver: every client of a federation in one process, over the same codec as a deployment."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from lora_a2.algebra import initial_adapter, moved_base
from lora_a2.clients import ClientMemory, Federation, client_round, personal
from lora_a2.codec import ValueType
from lora_a2.cohorts import choose_cohort
from lora_a2.data.labelled import LabelledData
from lora_a2.data.split import split_data
from lora_a2.method import Method
from lora_a2.methods import DEFAULT_METHOD, get_method
from lora_a2.model.classifier import Classifier
from lora_a2.model.defaults import model_defaults
from lora_a2.model.pretrained import Model, layout_head
from lora_a2.probes import get_probe
from lora_a2.randomness import generator
from lora_a2.rounds import RoundRecord, Train, Watch, server_round
from lora_a2.training.evaluate import Evaluation, evaluate, predict
from lora_a2.training.full import weight_shapes
from lora_a2.training.local import TokenizedExamples, TrainingSettings
from lora_a2.training.pool import Pool, usual_workers
from lora_a2.types import ClientProfile, ServerState


@dataclass(frozen=True)
class Client:
    """A simulated client: its name and its tokenised training and test examples (the latter may be none)."""

    id: int
    name: str
    train: TokenizedExamples
    test: TokenizedExamples


Memories = dict[int, ClientMemory]
"""Client id → what it keeps from round to round. Base weights are not in it: those who took part in the last round hold
the server's `base`, bit for bit, and the others are sent all of it."""


@dataclass(frozen=True, kw_only=True)
class RunStart:
    """What is known of a run before its first round in this process, which is `first_round`.

    `cohort_size` clients take part in each round; full fine-tuning would upload `full_finetuning_bytes_per_round`.
    """

    output_dir: str
    num_clients: int
    cohort_size: int
    first_round: int
    num_server_rounds: int
    full_finetuning_bytes_per_round: int
    method: str
    model: str
    data: str


class Observer:
    """Hears of a run's progress; each method does nothing unless overridden."""

    def started(self, start: RunStart) -> None:
        """Once, before the first round of this process."""

    def clients_done(self, server_round: int, done: int, cohort: int) -> None:
        """After each client, or chunk of clients, of a round."""

    def round_done(self, record: RoundRecord) -> None:
        """After each round; on resuming also for each round that was done before."""

    def note(self, text: str) -> None:
        """A line that the user should see."""


def make_clients(
    data: LabelledData,
    model: Model,
    *,
    partitioner: str = "dirichlet",
    num_clients: int | None = 10,
    alpha: float = 0.5,
    min_client_examples: int = 1,
    seed: int = 0,
) -> tuple[Client, ...]:
    """Splits training and test set alike over the clients and tokenises them.

    Raises:
        ConfigError: a split that the data do not allow.
    """
    split = split_data(
        data,
        partitioner=partitioner,
        num_clients=num_clients,
        alpha=alpha,
        min_client_examples=min_client_examples,
        seed=seed,
    )
    train, test = (TokenizedExamples(model.tokenize(part.texts), part.labels) for part in (data.train, data.test))
    return tuple(
        Client(i, name, train.take(rows), test.take(test_rows))
        for i, (name, rows, test_rows) in enumerate(zip(split.names, split.train, split.test, strict=True))
    )


def make_profiles(
    method: Method, clients: Sequence[Client], r: int, rank_budgets: Sequence[int]
) -> tuple[ClientProfile, ...]:
    """A profile for each client. With selection a client holds all r ranks and uploads within its budget; without,
    it holds as many ranks as its budget."""
    return tuple(
        ClientProfile(c.id, r if method.select else budget, budget, len(c.train))
        for c, budget in zip(clients, rank_budgets, strict=True)
    )


def evaluate_clients(pool: Pool, state: ServerState, clients: Sequence[Client]) -> Evaluation:
    """The global model on the clients' test shares."""
    sentences = [s for c in clients for s in c.test.input_ids]
    logits = predict(pool, state.adapter, moved_base(state.base, state.base_update), sentences)
    return _evaluate(logits.argmax(1), clients)


def evaluate_personal(pool: Pool, state: ServerState, clients: Sequence[Client], memories: Memories) -> Evaluation:
    """Each client's own model, with its private factors, on its own test share."""
    base = moved_base(state.base, state.base_update)

    def work(classifier: Classifier, client: Client) -> np.ndarray:
        classifier.set_base(base)
        own = personal(state.adapter, memories.get(client.id, ClientMemory()))
        predicted: np.ndarray = classifier.predict(own, client.test.input_ids).argmax(1)
        return predicted

    return _evaluate(np.concatenate(list(pool.map(work, clients))), clients)


def _evaluate(predicted: np.ndarray, clients: Sequence[Client]) -> Evaluation:
    labels = np.concatenate([c.test.labels for c in clients])
    ends = np.cumsum([len(c.test) for c in clients])
    rows = {c.name: np.arange(end - len(c.test), end) for c, end in zip(clients, ends, strict=True)}
    return evaluate(predicted, labels, rows)


def evaluate_state(
    pool: Pool, method: Method, state: ServerState, clients: Sequence[Client], memories: Memories
) -> dict[str, Any]:
    """A round's metrics: the global model's, and under "personal" those of the clients' own models where they have some."""
    found = evaluate_clients(pool, state, clients).to_json()
    if method.private:
        found["personal"] = evaluate_personal(pool, state, clients, memories).to_json()
    return found


@dataclass(frozen=True)
class Plan:
    """A federation together with who takes part, for how long, and how this machine goes about it.

    `cohort_size` clients go through one forward and backward; `num_workers` such groups are computed side by side
    (None: one a core on a CPU, one in all on an accelerator).
    """

    federation: Federation
    profiles: tuple[ClientProfile, ...]
    num_server_rounds: int
    fraction_train: float = 1.0
    eval_every: int = 1
    cohort_size: int = 1
    num_workers: int | None = None

    def start(self) -> ServerState:
        """The state before round 1."""
        return ServerState(0, self.federation.initial, self.federation.seed)


def make_plan(
    model: Model,
    clients: Sequence[Client],
    method: str | Method = DEFAULT_METHOD,
    *,
    num_server_rounds: int = 10,
    local_epochs: int = 2,
    batch_size: int = 16,
    learning_rate: float | None = None,
    learning_rate_ratio: float | None = None,
    weight_decay: float = 0.01,
    r: int = 16,
    lora_alpha: float = 16.0,
    rank_budget: int | Sequence[int] = 2,
    probe: str | None = None,
    probe_batches: int | None = None,
    fraction_train: float = 1.0,
    wire_dtype: ValueType = "fp32",
    eval_every: int = 1,
    cohort_size: int = 1,
    num_workers: int | None = None,
    seed: int = 0,
) -> Plan:
    """Everything a run needs besides the model and the clients' data; names as on the command line.

    Raises:
        ConfigError: a probe for a method that selects nothing.
    """
    chosen = get_method(method) if isinstance(method, str) else method
    budgets = [rank_budget] * len(clients) if isinstance(rank_budget, int) else list(rank_budget)
    profiles = make_profiles(chosen, clients, r, budgets)
    rank = max(p.rank for p in profiles)
    federation = Federation(
        method=chosen,
        layout=replace(model.layout, dense=weight_shapes(model.classifier)) if chosen.full else model.layout,
        initial=initial_adapter(model.layout, rank, lora_alpha, generator(seed, "adapter"), layout_head(model)),
        seed=seed,
        local_epochs=local_epochs,
        training=TrainingSettings(
            batch_size=batch_size,
            learning_rate=model_defaults(model.name).learning_rate if learning_rate is None else learning_rate,
            learning_rate_ratio=chosen.learning_rate_ratio if learning_rate_ratio is None else learning_rate_ratio,
            weight_decay=weight_decay,
            penalty=chosen.penalty,
        ),
        wire_dtype=wire_dtype,
        probe=get_probe(chosen, probe, probe_batches),
    )
    return Plan(federation, profiles, num_server_rounds, fraction_train, eval_every, cohort_size, num_workers)


def make_pool(model: Model, plan: Plan) -> Pool:
    """The workers of a plan; one where whole backbones are trained, since the workers share what is not adapted."""
    workers = plan.num_workers or usual_workers(model.classifier.device)
    return Pool(model.classifier, 1 if plan.federation.method.full else workers)


def simulate(
    model: Model,
    clients: Sequence[Client],
    plan: Plan,
    *,
    state: ServerState | None = None,
    memories: Memories | None = None,
    observer: Observer | None = None,
    watch: Watch | None = None,
) -> Iterator[tuple[ServerState, RoundRecord]]:
    """Runs the rounds after `state` (None: from the start) and yields state and record after each.

    `memories` is what the clients had kept when `state` was reached (None: nothing); it is brought up to date each round.
    `watch` hears of every reply, as `recording.Recorder.reply` wants to.
    """
    observer = observer or Observer()
    state = state or plan.start()
    memories = {} if memories is None else memories
    if model.classifier.note is not None:
        observer.note(model.classifier.note)
    by_id = {client.id: client for client in clients}
    with make_pool(model, plan) as pool:
        while state.server_round < plan.num_server_rounds:
            number = state.server_round + 1
            cohort = choose_cohort(plan.profiles, plan.fraction_train, plan.federation.seed, number)
            done = partial(observer.clients_done, number, cohort=len(cohort))
            train = _local_training(pool, plan, by_id, state, memories, done)
            state, record = server_round(plan.federation, state, cohort, train, watch)
            if number % plan.eval_every == 0 or number == plan.num_server_rounds:
                began = time.perf_counter()
                record = replace(
                    record,
                    metrics=evaluate_state(pool, plan.federation.method, state, clients, memories),
                    seconds={**record.seconds, "evaluate": time.perf_counter() - began},
                )
            observer.round_done(record)
            yield state, record


def _local_training(
    pool: Pool,
    plan: Plan,
    clients: dict[int, Client],
    state: ServerState,
    memories: Memories,
    done: Callable[[int], None],
) -> Train:
    def work(
        classifier: Classifier, chunk: Sequence[tuple[ClientProfile, bytes]]
    ) -> tuple[list[ClientProfile], list[bytes], list[ClientMemory]]:
        members = [(profile, clients[profile.id].train) for profile, _ in chunk]
        held = [_memory(profile, state, memories) for profile, _ in chunk]
        uploads = client_round(plan.federation, classifier, members, [data for _, data in chunk], held)
        return [profile for profile, _ in chunk], uploads, held

    def chunks(downloads: Iterable[tuple[ClientProfile, bytes]]) -> Iterator[list[tuple[ClientProfile, bytes]]]:
        rest = iter(downloads)
        while chunk := list(islice(rest, plan.cohort_size)):
            yield chunk

    def train(downloads: Iterable[tuple[ClientProfile, bytes]]) -> Iterator[tuple[ClientProfile, bytes]]:
        finished = 0
        for members, uploads, held in pool.map(work, chunks(downloads)):
            for profile, memory in zip(members, held, strict=True):
                if memory.private:
                    memories[profile.id] = ClientMemory(private=memory.private)
            finished += len(members)
            done(finished)
            yield from zip(members, uploads, strict=True)

    return train


def _memory(profile: ClientProfile, state: ServerState, memories: Memories) -> ClientMemory:
    """What a client holds when the round after `state` begins."""
    private = memories[profile.id].private if profile.id in memories else {}
    return ClientMemory(state.base if profile.id in state.synced else {}, private)
