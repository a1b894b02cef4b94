"""From a configuration to a finished run directory, and back from a run directory to a model."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from lora_a2.algebra import moved_base
from lora_a2.analysis.record import clients_json
from lora_a2.budgets import rank_budgets
from lora_a2.clients import personal
from lora_a2.cohorts import cohort_size
from lora_a2.config import RunConfig, dump_config, load_config, make_config
from lora_a2.data.labelled import LabelledData
from lora_a2.data.sources import load_data, load_examples
from lora_a2.environment import environment
from lora_a2.errors import RunError
from lora_a2.methods import get_method
from lora_a2.model.defaults import model_defaults
from lora_a2.model.peft_io import save_adapter
from lora_a2.model.precision import dtype_name
from lora_a2.model.pretrained import Model, load_model
from lora_a2.predict import load_predictor
from lora_a2.probes import resolved_probe
from lora_a2.randomness import generator
from lora_a2.recording import Recorder
from lora_a2.rounds import RoundRecord
from lora_a2.runs import RunDirectory
from lora_a2.simulation import (
    Client,
    Memories,
    Observer,
    Plan,
    RunStart,
    evaluate_clients,
    make_clients,
    make_plan,
    make_pool,
    simulate,
)
from lora_a2.trackers import require_trackers
from lora_a2.trackers.observer import tracking
from lora_a2.training.evaluate import Evaluation, evaluate
from lora_a2.types import ServerState


@dataclass(frozen=True)
class RunSummary:
    """What a finished run comes to.

    `full_finetuning_parameters` is what full fine-tuning would have uploaded in the same rounds from the same clients;
    `reduction_percent` how much less the run uploaded. Accuracies are fractions of 1, of the last round, of the global model;
    `personal_accuracy` is that of the clients' own models on their own examples, where the method makes such.
    """

    accuracy: float
    macro_f1: float
    client_mean: float | None
    client_worst_tenth: float | None
    uploaded_parameters: int
    uploaded_bytes: int
    downloaded_parameters: int
    downloaded_bytes: int
    full_finetuning_parameters: int
    reduction_percent: float
    server_rounds: int
    num_clients: int
    seconds: float
    peak_memory_bytes: int
    method: str
    output_dir: str
    personal_accuracy: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for `json.dumps`."""
        return asdict(self)


@dataclass(frozen=True)
class _Setup:
    """All that a configuration stands for, loaded."""

    config: RunConfig
    data: LabelledData
    model: Model
    clients: tuple[Client, ...]
    plan: Plan


def launch(config: RunConfig, observer: Observer) -> RunSummary:
    """Runs a configuration from the start, in a new run directory.

    Raises:
        LoraA2Error: anything the user gave is wrong; nothing has been written then.
    """
    require_trackers(config.report_to or ())
    path = Path(config.output_dir) if config.output_dir else _fresh_directory(config)
    RunDirectory.check_free(path)
    setup = _set_up(config)
    resolved = setup.config.model_copy(update={"output_dir": str(path)})
    run = RunDirectory.create(path, dump_config(resolved), environment(setup.model, setup.data), _clients(setup))
    return _finish(run, setup, observer)


def resume(run_dir: str | Path, observer: Observer) -> RunSummary:
    """Continues a run after its last finished round; the result is that of a run never interrupted.

    Raises:
        RunError: no run directory, a damaged one, or the data are no longer what they were.
    """
    run = RunDirectory.open(Path(run_dir))
    recorded, config = run.environment(), _config_of(run)
    require_trackers(config.report_to or ())
    setup = _set_up(config)
    if setup.data.fingerprint() != recorded["data_sha256"]:
        raise RunError(f"The data of {run_dir} have changed since it started: restore them, or start a new run.")
    return _finish(run, setup, observer)


def evaluate_run(
    run_dir: str | Path,
    data: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    client_column: str | None = None,
) -> Evaluation:
    """A finished run's model on its own clients' test shares, or on other data with the same labels.

    Raises:
        RunError: the run is not finished or damaged.
        DataError: the data cannot be read, or have labels that the model does not know.
    """
    run = RunDirectory.open(Path(run_dir))
    run.require_finished()
    if data is None:
        setup = _set_up(_config_of(run))
        state = run.load_state(setup.model.layout)
        if state is None:
            raise RunError(f"{run_dir} is damaged: it has an adapter but no checkpoint/state.json.")
        with make_pool(setup.model, setup.plan) as pool:
            return evaluate_clients(pool, state, setup.clients)
    config, predictor = _config_of(run), load_predictor(run_dir)
    examples = load_examples(
        data,
        predictor.label_names,
        text_column=text_column,
        label_column=label_column,
        client_column=client_column,
        usual_columns=(config.text_column, config.label_column, config.client_column),
        strip_newsgroups=config.strip_newsgroups,
    )
    rows = None
    if examples.clients is not None:
        names = np.array(examples.clients)
        rows = {str(name): np.flatnonzero(names == name) for name in np.unique(names)}
    return evaluate(predictor.predict(examples.texts).argmax(1), examples.labels, rows)


def _finish(run: RunDirectory, setup: _Setup, observer: Observer) -> RunSummary:
    """Trains the rounds that are missing, commits each, and writes the adapter."""
    began, config = time.perf_counter(), setup.config
    logged = config.model_dump(by_alias=True, exclude={"output_dir", "report_to"})
    with run.locked(), tracking(observer, config.report_to or (), run.path, logged) as watched:
        state = run.load_state(setup.model.layout) or setup.plan.start()
        records = run.load_records(state.server_round)
        run.discard_uncommitted(state.server_round)
        earlier = sum(sum(record.seconds.values()) for record in records)
        size = cohort_size(len(setup.clients), setup.plan.fraction_train)
        watched.started(
            RunStart(
                output_dir=str(run.path),
                num_clients=len(setup.clients),
                cohort_size=size,
                first_round=state.server_round + 1,
                num_server_rounds=setup.plan.num_server_rounds,
                full_finetuning_bytes_per_round=4 * setup.model.full_parameters * size,
                method=config.method,
                model=config.model,
                data=config.data,
            )
        )
        for record in records:
            watched.round_done(record)
        memories = run.load_memories()
        recorder = Recorder(setup.model.layout, setup.plan.federation.method) if setup.config.record_analysis else None
        for new, record in simulate(
            setup.model,
            setup.clients,
            setup.plan,
            state=state,
            memories=memories,
            observer=watched,
            watch=recorder.reply if recorder else None,
        ):
            analysis = None
            if recorder is not None:
                analysis = recorder.finish(state, new).to_json()
                record = replace(record, seconds={**record.seconds, "analysis": recorder.seconds})
            state = new
            run.commit(state, record, memories, analysis)
            records.append(record)
        _save(run, setup, state, memories)
        summary = _summary(run, setup, records, earlier + time.perf_counter() - began)
        watched.finished(summary.to_json())
    return summary


def _clients(setup: _Setup) -> dict[str, Any] | None:
    """What `clients.json` says, where the run records it."""
    if not setup.config.record_analysis:
        return None
    rows = ((c.id, c.name, c.train.labels, c.test.labels) for c in setup.clients)
    return clients_json(setup.model.layout, setup.data.label_names, rows)


def _save(run: RunDirectory, setup: _Setup, state: ServerState, memories: Memories) -> None:
    """The global model, and the clients' own ones where they have some."""
    base = moved_base(state.base, state.base_update)
    save_adapter(run.adapter, setup.model, state.adapter, base)
    for client, memory in memories.items():
        save_adapter(run.personal / str(client), setup.model, personal(state.adapter, memory), base)


def _summary(run: RunDirectory, setup: _Setup, records: Sequence[RoundRecord], seconds: float) -> RunSummary:
    uploaded = sum(r.uploaded_parameters for r in records)
    full = setup.model.full_parameters * sum(len(r.clients) for r in records)
    metrics = records[-1].metrics
    return RunSummary(
        accuracy=metrics["accuracy"],
        macro_f1=metrics["macro_f1"],
        client_mean=metrics["client_mean"],
        client_worst_tenth=metrics["client_worst_tenth"],
        uploaded_parameters=uploaded,
        uploaded_bytes=sum(r.uploaded_bytes for r in records),
        downloaded_parameters=sum(r.downloaded_parameters for r in records),
        downloaded_bytes=sum(r.downloaded_bytes for r in records),
        full_finetuning_parameters=full,
        reduction_percent=100 * (1 - uploaded / full),
        server_rounds=len(records),
        num_clients=len(setup.clients),
        seconds=seconds,
        peak_memory_bytes=1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        method=setup.config.method,
        output_dir=str(run.path),
        personal_accuracy=metrics["personal"]["accuracy"] if "personal" in metrics else None,
    )


def _config_of(run: RunDirectory) -> RunConfig:
    return make_config(load_config(run.path / "config.toml"), {})


def _fresh_directory(config: RunConfig) -> Path:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    name = Path(config.data).name.split(".")[0]
    return Path("runs") / f"{name}-{config.method}-{stamp}"


def _set_up(config: RunConfig) -> _Setup:
    data = load_data(**config.data_options())
    method, defaults = get_method(config.method), model_defaults(config.model)
    model = load_model(
        config.model,
        labels=data.label_names,
        target_modules=config.target_modules,
        head=config.head,
        head_scale=config.head_scale or defaults.head_scale,
        pooling=config.pooling,
        dtype=config.dtype,
        device=config.device,
        max_length=config.max_length,
        seed=config.seed,
    )
    clients = make_clients(data, model, **config.split_options())
    config = config.model_copy(
        update={
            "num_clients": len(clients),
            "head_scale": config.head_scale or defaults.head_scale,
            "pooling": model.classifier.pooling,
            "dtype": dtype_name(model.classifier.dtype),
            "device": str(model.classifier.device),
            "learning_rate": learning_rate(config),
            "learning_rate_ratio": config.learning_rate_ratio or method.learning_rate_ratio,
            **resolved_probe(method, config.probe, config.probe_batches),
            "cohort_size": config.cohort_size or _usual_cohort(model, len(clients), config.fraction_train),
        }
    )
    return _Setup(config, data, model, clients, _plan(config, model, clients))


def learning_rate(config: RunConfig) -> float:
    """The learning rate of A in a run: the one given, or the default of method and model."""
    if config.learning_rate is not None:
        return config.learning_rate
    return model_defaults(config.model).learning_rate * get_method(config.method).learning_rate_scale


def _usual_cohort(model: Model, num_clients: int, fraction_train: float) -> int:
    """One client at a time on a CPU, where more gain nothing; the whole cohort on a GPU."""
    return 1 if model.classifier.device.type == "cpu" else cohort_size(num_clients, fraction_train)


def _plan(config: RunConfig, model: Model, clients: Sequence[Client]) -> Plan:
    budgets = rank_budgets(config.rank_budget, len(clients), config.r, generator(config.seed, "rank-budget"))
    assert config.learning_rate is not None, "the configuration is resolved"
    assert config.cohort_size is not None, "the configuration is resolved"
    return make_plan(
        model,
        clients,
        config.chosen_method(),
        num_server_rounds=config.num_server_rounds,
        local_epochs=config.local_epochs,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        learning_rate_ratio=config.learning_rate_ratio,
        weight_decay=config.weight_decay,
        r=config.r,
        lora_alpha=config.lora_alpha,
        rank_budget=budgets,
        probe=config.probe,
        probe_batches=config.probe_batches,
        fraction_train=config.fraction_train,
        wire_dtype=config.wire_dtype,
        eval_every=config.eval_every,
        cohort_size=config.cohort_size,
        num_workers=config.num_workers,
        seed=config.seed,
    )
