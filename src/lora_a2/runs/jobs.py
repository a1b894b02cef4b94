"""From a configuration to a finished run directory, and back from a run directory to a model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from lora_a2.analysis.baselines import side_by_side
from lora_a2.analysis.record import clients_json
from lora_a2.analysis.recording import Recorder
from lora_a2.config.opening import open_data, with_absolute_paths, with_task
from lora_a2.config.run import RunConfig, dump_config, make_config
from lora_a2.config.setup import open_clients, open_model, plan_of, resolved
from lora_a2.core.sampling import cohort_size
from lora_a2.core.types import ServerState
from lora_a2.data.written import DataSet
from lora_a2.engine.pool import peak_memory
from lora_a2.errors import ConfigError, RunError
from lora_a2.federation.exchange import ReplyCallback
from lora_a2.federation.holdings import personal
from lora_a2.federation.loop import Plan
from lora_a2.federation.observer import Observer, RunStart
from lora_a2.federation.population import Client, TokenCounts
from lora_a2.federation.records import RoundRecord
from lora_a2.federation.scores import best_round, is_best, out_of_patience
from lora_a2.model.fingerprint import require_same
from lora_a2.model.merged import save_merged
from lora_a2.model.peft_io import save_adapter
from lora_a2.model.pretrained import Model
from lora_a2.model.writer_io import save_merged_writer, save_writer_adapter
from lora_a2.runs.baselines import Result, add_baselines
from lora_a2.runs.configured import config_of
from lora_a2.runs.directory import RunDirectory
from lora_a2.runs.environment import environment
from lora_a2.runs.summary import RunSummary
from lora_a2.runs.understood import understood
from lora_a2.settings.task import CAUSAL_LM
from lora_a2.simulation import ClientStates, simulate
from lora_a2.trackers import require_trackers
from lora_a2.trackers.observer import tracking


@dataclass(frozen=True)
class Setup:
    """All that a configuration stands for, loaded."""

    config: RunConfig
    data: DataSet
    model: Model
    clients: tuple[Client, ...]
    plan: Plan
    tokens: TokenCounts


def launch(config: RunConfig, observer: Observer, *, began: float | None = None) -> RunSummary:
    """Runs a configuration from the start, in a new run directory.

    `began` is what `time.perf_counter` showed when the user began to wait; None: now. What was loaded is told before the first round.

    Raises:
        LoraA2Error: anything the user gave is wrong; nothing has been written then.
    """
    began = time.perf_counter() if began is None else began
    require_trackers(config.report_to or ())
    path = Path(config.output_dir) if config.output_dir else fresh_directory(config)
    RunDirectory.check_free(path)
    setup = set_up(config)
    resolved = with_absolute_paths(setup.config.model_copy(update={"output_dir": str(path)}))
    facts = environment(setup.model, setup.data)
    described = describe_clients(resolved, setup.model, setup.data.label_names, setup.clients)
    run = RunDirectory.create(path, dump_config(resolved), facts, described)
    if config.task is None and setup.model.task.name == CAUSAL_LM:  # the one that nobody has to expect
        observer.note(f"The task is {CAUSAL_LM}, by the columns of the data; --task would say otherwise.")
    observer.loaded(understood(setup.data, setup.clients, setup.tokens, time.perf_counter() - began))
    for note in (*setup.data.notes, *setup.tokens.notes):
        observer.note(note)
    return _simulated(run, setup, observer, began)


def resume(
    run_dir: str | Path,
    observer: Observer,
    from_round: int | None = None,
    *,
    num_server_rounds: int | None = None,
    trust_remote_code: bool = False,
    began: float | None = None,
) -> RunSummary:
    """Continues a run after its last finished round; the result is that of a run never interrupted.

    `from_round`: after this one, of which a checkpoint is kept: the last or the one before, for when the last is damaged.
    `num_server_rounds`: how many rounds it is to have in all, also if it is finished; those that are done stay as they are.
    `began`: as in `launch`.

    Raises:
        RunError: no run directory, a damaged one, or the data or the model are no longer what they were.
        ConfigError: with so many rounds in all those that are done would have been others.
    """
    began = time.perf_counter() if began is None else began
    run = RunDirectory.open(Path(run_dir))
    config = config_of(run, trust_remote_code)
    other = num_server_rounds is not None and num_server_rounds != config.num_server_rounds
    if num_server_rounds is not None and other:
        config = lengthened(run, config, num_server_rounds)
    require_trackers(config.report_to or ())
    setup = set_up(config)
    require_unchanged(run, setup)
    if other:
        with run.locked():
            run.reconfigure(dump_config(config))
    return _simulated(run, setup, observer, began, from_round)


def lengthened(run: RunDirectory, config: RunConfig, num_server_rounds: int) -> RunConfig:
    """The configuration with another number of rounds in all.

    Raises:
        ConfigError: the rounds that are done are as many, or would have been others.
    """
    changed = make_config({**dict(config), "num_server_rounds": num_server_rounds}, {})
    done = run.rounds_done()
    if num_server_rounds <= done:
        raise ConfigError(f"num-server-rounds: {run.path} has {done} finished rounds; give more than that, in all.")
    if out_of_patience(config.early_stopping_patience, run.load_records()):
        raise ConfigError(
            f"num-server-rounds: {run.path} ended early, after round {done}, by early-stopping-patience "
            f"{config.early_stopping_patience}; to go on longer start a new run with more patience."
        )
    before, after = config.chosen_schedule(), changed.chosen_schedule()
    others = next((n for n in range(1, done + 1) if before.factor(n) != after.factor(n)), None)
    if others is not None:
        raise ConfigError(
            f"num-server-rounds: the learning rate goes over all {config.num_server_rounds} rounds (lr-scheduler-type "
            f"{config.lr_scheduler_type}); with {num_server_rounds} round {others}, which is done, would have been trained at "
            "another: start a new run."
        )
    return changed


def require_unchanged(run: RunDirectory, setup: Setup) -> None:
    """Refuses to go on with other data, or with another model, than the run began with.

    Raises:
        RunError: they have changed.
    """
    recorded = run.environment()
    if setup.data.fingerprint() != recorded["data_sha256"]:
        raise RunError(
            f"The data of {run.path} have changed since it started, or were read otherwise than config.toml says: "
            f"{_differences(recorded['data'], setup.data)}. Restore them, or start a new run."
        )
    require_same(setup.model.name, setup.model.fingerprint, recorded["model_fingerprint"], str(run.path))


def _differences(recorded: Mapping[str, Any], data: DataSet) -> str:
    """What can be told of two data sets without their texts."""
    before, now = recorded["label_names"], list(data.label_names)
    if before != now:
        return f"the run has {len(before)} labels, and {data.name} has {len(now)}, or others"
    sizes = f"{recorded['train_examples']} and {recorded['test_examples']}"
    return f"the run had {sizes} examples to train and test with, and {data.name} has {len(data.train)} and {len(data.test)}"


def _simulated(
    run: RunDirectory, setup: Setup, observer: Observer, began: float, from_round: int | None = None
) -> RunSummary:
    def rounds(progress: Progress, callback: ReplyCallback | None, watched: Observer) -> Rounds:
        return simulate(
            *(setup.model, setup.clients, setup.plan),
            state=progress.state,
            kept=progress.kept,
            observer=watched,
            callback=callback,
            records=progress.records,
        )

    records, seconds = finish(run, setup.config, setup.model, setup.plan, rounds, observer, from_round, began)
    summary = _summary(run, setup.config, setup.model, setup.plan, records, seconds)
    return replace(summary, baselines=_compared(run, setup, records, observer)) if setup.config.compares else summary


def _compared(run: RunDirectory, setup: Setup, records: Sequence[RoundRecord], observer: Observer) -> dict[str, Any]:
    """The result beside the configuration's baselines; those that are missing are computed."""
    config, model = setup.config, setup.model
    with run.locked():
        state, kept = run.load_kept(model.layout)
        result = Result(state, kept, records[: state.server_round])
        found = add_baselines(run, config, model, setup.plan, setup.clients, result, observer)
    return side_by_side(model.task, found, _kept_record(config, records).metrics)


Rounds = Iterator[tuple[ServerState, RoundRecord]]


@dataclass(frozen=True)
class Progress:
    """Where a run is when this process takes it up: its state, what the clients keep, the records of the rounds before."""

    state: ServerState
    kept: ClientStates
    records: Sequence[RoundRecord]


def describe_clients(
    config: RunConfig, model: Model, label_names: Sequence[str], clients: Sequence[Client]
) -> dict[str, Any] | None:
    """What `clients.json` says, where the run records for analysis; of clients only those whose labels are known here."""
    if not config.record_analysis:
        return None
    rows = [
        (c.id, c.name, c.train.labels, c.test.labels)
        for c in clients
        if isinstance(c.train.labels, np.ndarray) and isinstance(c.test.labels, np.ndarray)
    ]
    return clients_json(model.layout, label_names, rows)


def finish(
    run: RunDirectory,
    config: RunConfig,
    model: Model,
    plan: Plan,
    rounds: Callable[[Progress, ReplyCallback | None, Observer], Rounds],
    observer: Observer,
    from_round: int | None = None,
    began: float | None = None,
) -> tuple[list[RoundRecord], float]:
    """Runs the rounds that are missing in a run directory, commits each, and writes the adapter.

    `rounds` continues from if the run is; it brings the kept up to date where the clients' are this process's own, and
    has the last two arguments hear of every reply and of the run's progress. `from_round`: see `resume`; `began`: see `launch`.
    Returns the records of all rounds and the seconds since `began`, with those of the rounds of earlier processes.
    """
    began = time.perf_counter() if began is None else began
    logged = config.model_dump(by_alias=True, exclude={"output_dir", "report_to"})
    with run.locked(), tracking(observer, config.report_to or (), run.path, logged) as watched:
        if from_round is not None:
            run.go_back(from_round)
        state = run.load_state(model.layout) or plan.start()
        records = run.load_records()
        run.discard_uncommitted()
        if not over(plan, records):
            run.discard_result()
        earlier = sum(sum(record.seconds.values()) for record in records)
        watched.started(_run_start(run, config, model, plan, records))
        for record in records:
            watched.round_done(record)
        kept = run.load_clients()
        recorder = Recorder(model.layout, plan.federation.method) if config.record_analysis else None
        for new, record in rounds(Progress(state, kept, tuple(records)), recorder, watched):
            analysis = None
            if recorder is not None:
                analysis = recorder.finish(state, new).to_json()
                record = replace(record, seconds={**record.seconds, "analysis": recorder.seconds})
            state = new
            records.append(record)
            run.commit(state, record, kept, analysis, is_best(records) if config.keep == "best" else None)
        with run.writing():
            _save(run, model, *((state, kept) if config.keep == "last" else run.load_kept(model.layout)))
        seconds = earlier + time.perf_counter() - began
        if _kept_record(config, records).metrics:  # nodes need not evaluate
            watched.finished(_summary(run, config, model, plan, records, seconds).to_json())
    return records, seconds


def over(plan: Plan, records: Sequence[RoundRecord]) -> bool:
    """Whether no round is to come after these."""
    return len(records) >= plan.num_server_rounds or out_of_patience(plan.early_stopping_patience, records)


def _run_start(
    run: RunDirectory, config: RunConfig, model: Model, plan: Plan, records: Sequence[RoundRecord]
) -> RunStart:
    assert config.num_clients is not None, "the configuration is resolved"
    size = cohort_size(config.num_clients, plan.fraction_train)
    return RunStart(
        output_dir=str(run.path),
        num_clients=config.num_clients,
        clients_per_round=size,
        first_round=len(records) + 1,
        num_server_rounds=len(records) if over(plan, records) else plan.num_server_rounds,
        full_finetuning_bytes_per_round=4 * model.full_parameters * size,
        method=config.method,
        model=config.model,
        data=config.data,
    )


def _save(run: RunDirectory, model: Model, state: ServerState, kept: ClientStates) -> None:
    """The global model, and the clients' own ones if they have some."""
    base = state.base
    save_result(run.model if base else run.adapter, model, state)
    for client, own_state in kept.items():
        own = replace(state, adapter=personal(state.adapter, own_state.private))
        save_result(run.personal / str(client), model, own)


def save_result(folder: str | Path, model: Model, state: ServerState) -> None:
    """Writes what a state has learnt: an adapter in PEFT's format, or, where base weights have moved, the whole model merged.

    `load_predictor` reads both of a classifier, which hold head and labels; `load_writer` those of a model that writes.
    """
    base, writes = state.base, model.task.name == CAUSAL_LM
    if base:
        (save_merged_writer if writes else save_merged)(folder, model, state.adapter, base)
    else:
        (save_writer_adapter if writes else save_adapter)(folder, model, state.adapter)


def _summary(
    run: RunDirectory, config: RunConfig, model: Model, plan: Plan, records: Sequence[RoundRecord], seconds: float
) -> RunSummary:
    uploaded = sum(r.uploaded_parameters for r in records)
    full = model.full_parameters * sum(len(r.clients) for r in records)
    record = _kept_record(config, records)
    metrics = record.metrics
    assert config.num_clients is not None, "the configuration is resolved"
    return RunSummary(
        task=model.task.name,
        metrics=_figures(metrics),
        uploaded_parameters=uploaded,
        uploaded_bytes=sum(r.uploaded_bytes for r in records),
        downloaded_parameters=sum(r.downloaded_parameters for r in records),
        downloaded_bytes=sum(r.downloaded_bytes for r in records),
        full_finetuning_parameters=full,
        reduction_percent=100 * (1 - uploaded / full),
        server_rounds=len(records),
        num_clients=config.num_clients,
        seconds=seconds,
        peak_memory_bytes=peak_memory(),
        method=config.method,
        output_dir=str(run.path),
        personal=_figures(metrics["personal"]) if "personal" in metrics else None,
        evaluation_bytes=sum(r.evaluation_bytes for r in records),
        exact_aggregation=plan.federation.exact,
        ended_early=len(records) < plan.num_server_rounds,
        kept_round=record.server_round,
    )


def _kept_record(config: RunConfig, records: Sequence[RoundRecord]) -> RoundRecord:
    """That of the round whose model is the result."""
    return (best_round(records) if config.keep == "best" else None) or records[-1]


def _figures(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """The numbers of an evaluation, without those of single clients."""
    return {name: value for name, value in metrics.items() if not isinstance(value, Mapping)}


def fresh_directory(config: RunConfig) -> Path:
    """Where a run goes that was given no place."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    name = Path(config.data).name.split(".")[0]
    return Path("runs") / f"{name}-{config.method}-{stamp}"


def set_up(config: RunConfig) -> Setup:
    """Loads all that a configuration stands for.

    Raises:
        LoraA2Error: anything the user gave is wrong.
    """
    config = with_task(config)
    data = open_data(config)
    model = open_model(config, data.label_names)
    clients, tokens = open_clients(config, data, model)
    if config.num_clients not in (None, len(clients)):
        raise ConfigError(
            f"num-clients is {config.num_clients}, but the column of the clients has {len(clients)}: leave it out."
        )
    config = resolved(config, model, len(clients))
    profiles = [(client.id, len(client.train)) for client in clients]
    return Setup(config, data, model, clients, plan_of(config, model, profiles), tokens)
