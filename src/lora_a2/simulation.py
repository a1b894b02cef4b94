"""The in-process driver: every client of a federation in one process, over the same codec as a deployment."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from lora_a2.config.effects import check_effects
from lora_a2.config.setup import usual_cohort
from lora_a2.core.algebra import moved_base
from lora_a2.core.types import ClientProfile, ServerState
from lora_a2.engine.classifier import Classifier
from lora_a2.engine.evaluate import Evaluation, evaluate, predict
from lora_a2.engine.kernels.attention import compiled
from lora_a2.engine.pool import Pool, ProcessPool, processes_work, usual_workers
from lora_a2.errors import ConfigError, ReplyError
from lora_a2.federation.agreement import make_federation
from lora_a2.federation.client import ClientMemory, client_round, personal
from lora_a2.federation.exchange import Train, Watch
from lora_a2.federation.loop import Observer, Plan, make_schedule, run_rounds
from lora_a2.federation.options import PlanOptions, own_options, usual_rank_budget
from lora_a2.federation.population import Client, make_profiles
from lora_a2.federation.records import RoundRecord
from lora_a2.methods import DEFAULT_METHOD
from lora_a2.methods.base import Method
from lora_a2.model.pretrained import Model
from lora_a2.settings.errors import kebab

Sent = tuple[ClientProfile, bytes]
Memories = dict[int, ClientMemory]
"""Client id → what it keeps from round to round. Base weights are not in it: those who took part in the last round hold
the server's `base`, bit for bit, and the others are sent all of it."""


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


def make_plan(model: Model, clients: Sequence[Client], method: str | Method = DEFAULT_METHOD, **options: Any) -> Plan:
    """Everything a run needs besides the model and the clients' data.

    Args:
        model: the clients' model.
        clients: who takes part.
        method: a name, or a method that is not in the registry.
        **options: those of `PlanOptions`, as on the command line: num_server_rounds=3, r=4, learning_rate=0.01. Options that
            are one method's own go with its name only.

    Raises:
        ConfigError: an unknown option, a wrong value, or an option that this method does not have.
    """
    named = {"method": method} if isinstance(method, str) else {}
    checked = PlanOptions.model_validate({**options, **named})
    if isinstance(method, str):
        method = checked.chosen_method()
    else:
        checked = _for_unnamed(checked, method)
    check_effects(checked)
    checked.check_with(method)
    size = checked.cohort_size or usual_cohort(model, len(clients), checked.fraction_train)
    profiles = make_profiles(method, clients, checked.r, checked.budgets(len(clients)))
    federation = make_federation(model, method, checked, len(clients))
    return make_schedule(federation, profiles, checked.model_copy(update={"cohort_size": size}))


def _for_unnamed(options: PlanOptions, method: Method) -> PlanOptions:
    """The options with the defaults of a method that is given itself, not by name."""
    for name in ("method", *own_options()):
        if name in options.model_fields_set:
            raise ConfigError(f"{kebab(name)}: the method is given as it is; give its name for this option.")
    if "rank_budget" in options.model_fields_set:
        return options
    return options.model_copy(update={"rank_budget": usual_rank_budget(method, options.r)})


def make_pool(model: Model, plan: Plan, *, fork: bool = True) -> Pool:
    """The workers of a plan: processes where they can be forked, else threads.

    Where whole backbones are trained there is one unless more are asked for, since each holds a model and its AdamW state; and
    one at most on threads, which share what is not adapted. `fork` False is for processes in which other threads are at
    work, such as those of a network client.
    """
    device, full = model.classifier.device, plan.federation.method.full
    workers = plan.num_workers or (1 if full else usual_workers(device))
    if fork and workers > 1 and processes_work(device):
        return ProcessPool(model.classifier, workers)
    return Pool(model.classifier, 1 if full else workers)


def simulate(
    model: Model,
    clients: Sequence[Client],
    plan: Plan,
    *,
    state: ServerState | None = None,
    memories: Memories | None = None,
    observer: Observer | None = None,
    watch: Watch | None = None,
    records: Sequence[RoundRecord] = (),
) -> Iterator[tuple[ServerState, RoundRecord]]:
    """Runs the rounds after `state` (None: from the start) and yields state and record after each.

    `memories` is what the clients had kept when `state` was reached (None: nothing); it is brought up to date each round.
    `watch` hears of every reply that counts, as `recording.Recorder` wants to. `records` are those of the rounds before.
    """
    observer = observer or Observer()
    for line in _notes(model.classifier):
        observer.note(line)
    with make_pool(model, plan) as pool:
        driver = InProcess(pool, plan, clients, {} if memories is None else memories, observer)
        yield from run_rounds(plan, state or plan.start(), driver, observer, watch, records)


def _notes(classifier: Classifier) -> Iterator[str]:
    """Why this model, or this installation, is slower than others."""
    if classifier.note is not None:
        yield classifier.note
    elif classifier.device.type == "cpu" and not compiled():
        yield "Local training is slower than it could be: lora-a2 was installed without a C compiler; install one, then it again."


class InProcess:
    """The driver of a simulation: the clients are computed by the workers of `pool`, and `memories` is theirs."""

    def __init__(
        self, pool: Pool, plan: Plan, clients: Sequence[Client], memories: Memories, observer: Observer
    ) -> None:
        self.observer = observer
        self._pool, self._plan, self._clients, self._memories = pool, plan, clients, memories
        self._by_id = {client.id: client for client in clients}

    def profiles(self, server_round: int) -> Sequence[ClientProfile]:
        """All of them, always."""
        return self._plan.profiles

    def failed(self, server_round: int, error: ReplyError) -> None:
        """Ends the run: the same clients would do the same again."""
        raise error

    def phases(self, seconds: dict[str, float]) -> dict[str, float]:
        """As they are."""
        return seconds

    def evaluate(self, state: ServerState) -> dict[str, Any]:
        """The global model's metrics, and those of the clients' own models."""
        return evaluate_state(self._pool, self._plan.federation.method, state, self._clients, self._memories)

    def train(self, state: ServerState, cohort: Sequence[ClientProfile]) -> Train:
        """Local training in chunks that share a forward and backward."""
        plan, memories = self._plan, self._memories

        def work(classifier: Classifier, chunk: Sequence[Sent]) -> tuple[list[ClientProfile], list[bytes], list[Any]]:
            members = [(profile, self._by_id[profile.id].train) for profile, _ in chunk]
            held = [_memory(profile, state, memories) for profile, _ in chunk]
            uploads = client_round(plan.federation, classifier, members, [data for _, data in chunk], held)
            return [profile for profile, _ in chunk], uploads, [memory.private for memory in held]

        def train(downloads: Iterable[Sent]) -> Iterator[Sent]:
            finished = 0
            for members, uploads, kept in self._pool.map(work, _chunks(downloads, plan.cohort_size)):
                for profile, private in zip(members, kept, strict=True):
                    if private:
                        memories[profile.id] = ClientMemory(private=private)
                finished += len(members)
                self.observer.clients_done(state.server_round + 1, finished, len(cohort))
                yield from zip(members, uploads, strict=True)

        return train


def _chunks(items: Iterable[Sent], size: int) -> Iterator[list[Sent]]:
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk


def _memory(profile: ClientProfile, state: ServerState, memories: Memories) -> ClientMemory:
    """What a client holds when the round after `state` begins."""
    private = memories[profile.id].private if profile.id in memories else {}
    return ClientMemory(state.base if profile.id in state.synced else {}, private)
