"""The in-process driver: every client of a federation in one process, over the same codec as a deployment."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from lora_a2.config.effects import check_effects
from lora_a2.config.setup import usual_cohort
from lora_a2.core.types import ClientProfile, ClientState, FloatArray, ServerState
from lora_a2.engine.evaluate import measure
from lora_a2.engine.kernels.attention import compiled
from lora_a2.engine.network import Network
from lora_a2.engine.pool import Pool, ProcessPool, processes_work
from lora_a2.engine.work import TokenizedExamples, end_to_end
from lora_a2.errors import ConfigError, ReplyError
from lora_a2.federation.agreement import make_federation
from lora_a2.federation.client import Answer, client_round
from lora_a2.federation.exchange import ReplyCallback, Train
from lora_a2.federation.holdings import personal, simulated
from lora_a2.federation.loop import Evaluated, Plan, make_schedule, run_rounds
from lora_a2.federation.observer import Observer
from lora_a2.federation.options import PlanOptions, own_options, usual_rank_budget
from lora_a2.federation.population import Client, make_profiles
from lora_a2.federation.records import RoundRecord
from lora_a2.methods import DEFAULT_METHOD
from lora_a2.methods.base import Method
from lora_a2.model.pretrained import Model
from lora_a2.settings.errors import kebab
from lora_a2.system.machine import cores
from lora_a2.tasks.base import Evaluation, Statistics, Task, evaluate, summed, with_tables

Sent = tuple[ClientProfile, bytes]
ClientStates = dict[int, ClientState]
"""Client id → what it keeps of its own from round to round. What it was sent is not in it: see `holdings.simulated`."""


def evaluate_clients(
    model: Model,
    pool: Pool,
    state: ServerState,
    clients: Sequence[Client],
    generate: int = 0,
    seed: int = 0,
    label_names: Sequence[str] | None = None,
) -> Evaluation:
    """The global model on the clients' test shares; of a model that writes also what it writes to `generate` of their prompts.

    With `label_names` there are tables in it.
    """
    examples = end_to_end([c.test for c in clients])
    outputs = measure(pool, state.adapter, state.base, examples)
    ends = np.cumsum([len(c.test) for c in clients])
    texts: list[Statistics] = [{} for _ in clients]
    if generate:
        texts = _written(model, pool, state, examples, ends, generate, seed)
    found = _statistics(model.task, np.split(outputs, ends[:-1]), clients, texts)
    evaluation = evaluate(model.task, summed(found.values()), found)
    if label_names is None:
        return evaluation
    tables = model.task.tables(outputs, examples.labels, label_names)
    return with_tables(model.task, evaluation, found, tables)


def _written(
    model: Model,
    pool: Pool,
    state: ServerState,
    examples: TokenizedExamples,
    ends: np.ndarray,
    generate: int,
    seed: int,
) -> list[Statistics]:
    """The statistics of what the model writes to prompts of each client, whose examples end at `ends`."""
    from lora_a2.tasks.causal_lm.scores import text_statistics
    from lora_a2.tasks.causal_lm.writing import chosen_examples, write

    rows = chosen_examples(examples, generate, seed)
    texts = write(model, pool, state.adapter, state.base, examples.take(rows))
    owner = np.searchsorted(ends, rows, side="right")
    return [
        text_statistics(
            [text for text, k in zip(texts, owner, strict=True) if k == client],
            [examples.references[row] for row, k in zip(rows, owner, strict=True) if k == client],
        )
        for client in range(len(ends))
    ]


def evaluate_personal(
    task: Task, pool: Pool, state: ServerState, clients: Sequence[Client], kept: ClientStates
) -> Evaluation:
    """Each client's own model, with its private factors, on its own test share."""
    base = state.base

    def work(network: Network, client: Client) -> FloatArray:
        network.set_base(base)
        own = personal(state.adapter, kept.get(client.id, ClientState()).private)
        return network.measure(own, client.test)

    found = _statistics(task, list(pool.map(work, clients)), clients, [{} for _ in clients])
    return evaluate(task, summed(found.values()), found)


def _statistics(
    task: Task, outputs: Sequence[FloatArray], clients: Sequence[Client], texts: Sequence[Statistics]
) -> dict[str, Statistics]:
    """By client. `outputs` are those of its test examples, `texts` the statistics of what was written to some of them."""
    each = zip(clients, outputs, texts, strict=True)
    return {c.name: {**task.statistics(own, c.test.labels), **more} for c, own, more in each if len(c.test)}


def evaluate_state(
    model: Model, pool: Pool, plan: Plan, state: ServerState, clients: Sequence[Client], kept: ClientStates
) -> dict[str, Any]:
    """A round's metrics: the global model's, and under "personal" those of the clients' own models if they have some."""
    found = evaluate_clients(model, pool, state, clients, plan.generate, plan.federation.seed).to_json()
    if plan.federation.method.private:
        found["personal"] = evaluate_personal(model.task, pool, state, clients, kept).to_json()
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
    size = checked.clients_per_pass or usual_cohort(model, len(clients), checked.fraction_train)
    profiles = make_profiles(method, clients, checked.r, checked.budgets(len(clients)))
    federation = make_federation(model, method, checked, len(clients))
    return make_schedule(federation, profiles, checked.model_copy(update={"clients_per_pass": size}))


def _for_unnamed(options: PlanOptions, method: Method) -> PlanOptions:
    """The options with the defaults of a method that is given itself, not by name."""
    for name in ("method", *own_options()):
        if name in options.model_fields_set:
            raise ConfigError(f"{kebab(name)}: the method is given as it is; give its name for this option.")
    if "rank_budget" in options.model_fields_set:
        return options
    return options.model_copy(update={"rank_budget": usual_rank_budget(method, options.r)})


def make_pool(model: Model, plan: Plan, *, fork: bool = True) -> Pool:
    """The workers of a plan: forked processes, one a core; this process alone if it cannot be forked, as on an accelerator.

    Where whole backbones are trained there is one unless more are asked for, since each holds a model and its AdamW state.
    `fork` False is for processes in which other threads are at work, such as those of a network client.
    """
    workers = plan.num_workers or (1 if plan.federation.method.full else len(cores()))
    return make_workers(model, workers if fork else 1)


def make_workers(model: Model, workers: int | None = None) -> Pool:
    """So many workers, one a core if nothing is said; this process alone where it cannot be forked."""
    workers = len(cores()) if workers is None else workers
    if workers > 1 and processes_work(model.network.device):
        return ProcessPool(model.network, workers)
    return Pool(model.network)


def simulate(
    model: Model,
    clients: Sequence[Client],
    plan: Plan,
    *,
    state: ServerState | None = None,
    kept: ClientStates | None = None,
    observer: Observer | None = None,
    callback: ReplyCallback | None = None,
    records: Sequence[RoundRecord] = (),
) -> Iterator[tuple[ServerState, RoundRecord]]:
    """Runs the rounds after `state` (None: from the start) and yields state and record after each.

    `kept` is what the clients had kept when `state` was reached (None: nothing); it is brought up to date each round.
    `callback` is notified of every reply that counts, as `recording.Recorder` wants to. `records` are those of the rounds before.
    """
    observer = observer or Observer()
    if plan.generate:
        from lora_a2.tasks.causal_lm.writing import require_writing

        require_writing(model)
    for line in _notes(model.network, plan):
        observer.note(line)
    with make_pool(model, plan) as pool:
        driver = InProcess(model, pool, plan, clients, {} if kept is None else kept, observer)
        yield from run_rounds(plan, state or plan.start(), driver, observer, callback, records)


def _notes(network: Network, plan: Plan) -> Iterator[str]:
    """Why this model, this installation or this machine is slower than others."""
    if (plan.num_workers or 1) > 1 and not processes_work(network.device):
        yield "Clients are computed one after another: --num-workers needs Linux, and a machine without an accelerator."
    if network.notice is not None:
        yield network.notice
    elif network.device.type == "cpu" and not compiled():
        yield "Local training is slower than it could be: lora-a2 was installed without a C compiler; install one, then it again."


class InProcess:
    """The driver of a simulation: the clients are computed by the workers of `pool`, and `kept` is theirs."""

    def __init__(
        self,
        model: Model,
        pool: Pool,
        plan: Plan,
        clients: Sequence[Client],
        kept: ClientStates,
        observer: Observer,
    ) -> None:
        self.observer = observer
        self._model = model
        self._pool, self._plan, self._clients, self._memories = pool, plan, clients, kept
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

    def evaluate(self, state: ServerState) -> Evaluated:
        """The global model's metrics, and those of the clients' own models."""
        return Evaluated(evaluate_state(self._model, self._pool, self._plan, state, self._clients, self._memories))

    def train(self, state: ServerState, cohort: Sequence[ClientProfile]) -> Train:
        """Local training in chunks that share a forward and backward."""
        plan, kept = self._plan, self._memories

        def work(network: Network, chunk: Sequence[Sent]) -> list[tuple[ClientProfile, Answer]]:
            members = [(profile, self._by_id[profile.id].train) for profile, _ in chunk]
            held = [
                simulated(plan.federation, state, profile, kept.get(profile.id, ClientState())) for profile, _ in chunk
            ]
            answers = client_round(plan.federation, network, members, [data for _, data in chunk], held)
            own = [(data, ClientState(private=after.private, extra=after.extra)) for data, after in answers]
            return [(profile, answer) for (profile, _), answer in zip(chunk, own, strict=True)]

        def train(downloads: Iterable[Sent]) -> Iterator[Sent]:
            finished = 0
            for answers in self._pool.map(work, _chunks(downloads, plan.clients_per_pass)):
                for profile, (_, own) in answers:
                    if own.private or own.extra:
                        kept[profile.id] = own
                finished += len(answers)
                self.observer.clients_done(state.server_round + 1, finished, len(cohort))
                yield from ((profile, data) for profile, (data, _) in answers)

        return train


def _chunks(items: Iterable[Sent], size: int) -> Iterator[list[Sent]]:
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk
