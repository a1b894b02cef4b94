"""The ServerApp: from a run configuration to a finished run directory, over the nodes of a grid."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.superlink.grid import InMemoryGrid

from lora_a2.config.opening import open_data, with_absolute_paths, with_task
from lora_a2.config.run import RunConfig, dump_config
from lora_a2.config.setup import open_clients, open_model, plan_of, resolved
from lora_a2.core.types import ServerState
from lora_a2.data.labelled import Examples, LabelledData
from lora_a2.data.options import DataOptions
from lora_a2.data.sources import load_examples
from lora_a2.data.writing import load_samples
from lora_a2.data.written import DataSet, Samples, WrittenData
from lora_a2.engine.evaluate import measure
from lora_a2.engine.pool import Pool
from lora_a2.errors import ConfigError, RunError
from lora_a2.federation.agreement import federation_layout
from lora_a2.federation.exchange import ReplyCallback
from lora_a2.federation.loop import run_rounds
from lora_a2.federation.observer import Observer
from lora_a2.flower.courier import Courier, log
from lora_a2.flower.driver import FlowerDriver
from lora_a2.flower.messages import request_content
from lora_a2.flower.options import ServerOptions, read_options, sent_config
from lora_a2.flower.places import Places
from lora_a2.flower.roster import Roster
from lora_a2.flower.simulated import LoadData
from lora_a2.flower.superlinks import older_than_its_run
from lora_a2.model.pretrained import Model
from lora_a2.node.protocol import Request
from lora_a2.runs.configured import config_of
from lora_a2.runs.directory import NODES_FILE, RunDirectory
from lora_a2.runs.environment import environment
from lora_a2.runs.jobs import Progress, Rounds, describe_clients, finish, fresh_directory
from lora_a2.settings.task import CAUSAL_LM
from lora_a2.simulation import evaluate_clients, make_pool
from lora_a2.tasks.base import evaluate

NO_TESTS = "evaluation is 'server', but the server has no test data: give test-data, or use 'nodes'."


@dataclass(frozen=True)
class _Start:
    """What the server knows before it contacts a node. `num_clients` None: the number of nodes at the start of the run."""

    config: RunConfig
    options: ServerOptions
    run: RunDirectory | None
    run_id: str
    num_clients: int | None
    data: DataSet
    model: Model


def make_server_app(load_data: LoadData | None = None) -> ServerApp:
    """A ServerApp. `load_data` returns class names and test data; None: the run configuration names them."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        courier = Courier(grid, simulated=isinstance(grid, InMemoryGrid))  # the simulation engine's grid
        if courier.simulated and (old := older_than_its_run()) is not None:
            log.warning(
                "This run is in a SuperLink that an earlier 'flwr run' left (%s): it keeps the packages and variables of that "
                "environment, and relative paths are resolved there. To have a new one: kill %d, then run again.",
                *(old, old.pid),
            )
        serve(courier, context.run_config, load_data)

    return app


def serve(
    courier: Courier, run_config: Mapping[str, bool | float | int | str], load_data: LoadData | None = None
) -> RunDirectory:
    """Runs a federation over the nodes that `courier` reaches, from the start or from if it was interrupted.

    Raises:
        LoraA2Error: an option is invalid, too few nodes come, or a round fails; finished rounds are kept.
    """
    start = _prepare(run_config, load_data)
    options, model = start.options, start.model
    for note in start.data.notes:
        log.warning(note)
    layout = federation_layout(model, start.config.chosen_method()).digest.hex()
    places = _places(start, courier)
    roster = Roster(
        courier,
        lambda: request_content(_question(start, courier)),
        layout,
        model.fingerprint,
        options.node_timeout,
        places,
    )
    roster.gather(options.min_train_nodes, options.start_timeout)
    rules = options.rules(courier.simulated, start.config.max_update_ratio)
    config = resolved(start.config, model, _num_clients(start, roster)).model_copy(
        update={"clients_per_pass": 1, "max_update_ratio": rules.max_update_ratio or start.config.max_update_ratio}
    )
    plan = plan_of(config, model, [], rules)
    run = start.run or _create(start, config)
    if not courier.simulated:
        places.keep(run.path / NODES_FILE)
    log.info("Run directory: %s", run.path)
    with make_pool(model, plan, fork=False) as pool:
        driver = FlowerDriver(
            courier,
            roster,
            plan,
            options,
            run_id=start.run_id,
            config=config,
            labels=start.data.label_names,
            state_dir=str(run.path / "clients"),
            task=model.task,
            evaluate=_server_evaluation(start, config, courier, pool),
        )

        def rounds(progress: Progress, callback: ReplyCallback | None, observer: Observer) -> Rounds:
            return run_rounds(plan, progress.state, driver, observer, callback, progress.records)

        records, seconds = finish(run, config, model, plan, rounds, driver, options.from_round or None)
    log.info("Finished %d rounds in %.0f s; the result is in %s.", len(records), seconds, run.result())
    return run


def _prepare(run_config: Mapping[str, bool | float | int | str], load_data: LoadData | None) -> _Start:
    config, options = read_options(run_config)
    run = RunDirectory.open(Path(options.resume).expanduser().resolve()) if options.resume else None
    run_id, num_clients = uuid.uuid4().hex, None
    if run is not None:
        config = config_of(run)
        num_clients = config.num_clients
        if (recorded := run.environment().get("run_id")) is None:
            raise RunError(f"{run.path} was not started by Flower: continue it with 'lora-a2 resume {run.path}'.")
        run_id = str(recorded)
    elif run_config.get("num-clients", "") != "":
        num_clients = config.num_clients
    config = with_task(config) if options.server_data and not options.label_names() else config
    data = server_data(config, options, load_data)
    if run is not None and data.fingerprint() != run.environment()["data_sha256"]:
        raise RunError(f"The server's data of {run.path} have changed since it started: restore them, or start anew.")
    return _Start(config, options, run, run_id, num_clients, data, open_model(config, data.label_names))


def server_data(config: RunConfig, options: ServerOptions, load_data: LoadData | None) -> DataSet:
    """The server's own data: all of a simulation's; or, if class names are given, test data at most.

    Raises:
        LoraA2Error: they cannot be used, or class names are given for a model that writes.
    """
    labels = options.label_names()
    if config.task == CAUSAL_LM and not options.server_data:
        if labels:
            raise ConfigError("labels: a model that writes has none; leave them out.")
        given = {**config.data_options(), "data": config.test_data, "test_data": None}
        samples = Samples(()) if config.test_data is None else load_samples(**given, say=log.warning)
        return WrittenData("nodes", Samples(()), samples)
    if not labels:
        return (load_data or open_data)(config)
    nothing = Examples((), np.zeros(0, np.int64), None)
    if config.test_data is None:
        return LabelledData("nodes", nothing, nothing, labels)
    how = DataOptions(text_column=config.text_column, label_column=config.label_column, **vars(config.file_options()))
    test = load_examples(config.test_data, labels, how, say=log.warning)
    return LabelledData("nodes", nothing, test, labels)


def _question(start: _Start, courier: Courier) -> Request:
    return Request(
        kind="profile",
        run_id=start.run_id,
        run=sent_config(resolved(start.config, start.model, 1)),
        labels=start.data.label_names,
        partition=0,
        num_partitions=0 if courier.simulated else start.num_clients or 0,  # 0: the node uses its own configuration
    )


def _places(start: _Start, courier: Courier) -> Places:
    """The partitions; a resumed run over nodes restores their owners."""
    if courier.simulated:
        return Places()
    return Places(start.num_clients, None if start.run is None else start.run.path / NODES_FILE)


def _num_clients(start: _Start, roster: Roster) -> int:
    if start.num_clients not in (None, roster.num_partitions):
        raise ConfigError(
            f"num-clients is {start.num_clients}, but the simulation has {roster.num_partitions} nodes: give "
            f"--federation-config num-supernodes={start.num_clients}."
        )
    return roster.num_partitions


def _create(start: _Start, config: RunConfig) -> RunDirectory:
    path = (Path(config.output_dir) if config.output_dir else fresh_directory(config)).expanduser().resolve()
    facts = {**environment(start.model, start.data), "run_id": start.run_id, "flwr": version("flwr")}
    # A client is not asked which labels it has: that is private.
    described = describe_clients(config, start.model, start.data.label_names, ())
    stored = with_absolute_paths(config.model_copy(update={"output_dir": str(path)}))
    return RunDirectory.create(path, dump_config(stored), facts, described)


def _server_evaluation(
    start: _Start, config: RunConfig, courier: Courier, pool: Pool
) -> Callable[[ServerState], dict[str, Any]] | None:
    """The server's own evaluation, if any: in a simulation client by client, since the server has all their data."""
    chosen, test = start.options.evaluation, start.data.test
    wanted = {"early-stopping-patience": config.early_stopping_patience is not None, "keep": config.keep == "best"}
    for name in (name for name, given in wanted.items() if given and chosen == "none"):
        raise ConfigError(f"{name}: it has no effect if evaluation is 'none'; choose another, or leave it out.")
    if chosen == "none" or chosen == "nodes" or (chosen == "auto" and not len(test)):
        return None
    if not len(test):
        raise ConfigError(NO_TESTS)
    if courier.simulated:
        clients, tokens = open_clients(config, start.data, start.model)
        for note in tokens.notes:
            log.warning(note)
        return lambda state: evaluate_clients(start.model, pool, state, clients, config.generate, config.seed).to_json()
    task, examples = start.model.task, start.model.encode(test).examples

    def central(state: ServerState) -> dict[str, Any]:
        found = task.statistics(measure(pool, state.adapter, state.base, examples), examples.labels)
        return evaluate(task, found, {}).to_json()

    return central


app = make_server_app()
