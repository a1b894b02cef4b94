"""How good a finished run is on test data, and a language model without one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lora_a2.config.run import RunConfig
from lora_a2.config.setup import open_model
from lora_a2.core.types import Adapter, BaseDelta
from lora_a2.data.file_options import FileOptions, take_file_options
from lora_a2.data.finding import find_tables
from lora_a2.data.objects import DataSource
from lora_a2.data.sources import load_examples
from lora_a2.data.writing import WrittenOptions, load_samples
from lora_a2.data.written import Samples
from lora_a2.engine.evaluate import measure
from lora_a2.errors import ConfigError, DataError
from lora_a2.model.pretrained import Model
from lora_a2.runs.configured import config_of
from lora_a2.runs.directory import RunDirectory
from lora_a2.runs.predict import load_predictor
from lora_a2.runs.unfinished import model_of, reopened, state_of
from lora_a2.settings.errors import kebab
from lora_a2.settings.task import CAUSAL_LM, CLASSIFICATION
from lora_a2.simulation import evaluate_clients, make_pool, make_workers
from lora_a2.tasks.base import Evaluation, evaluate, with_tables
from lora_a2.tasks.causal_lm.scores import text_statistics
from lora_a2.tasks.causal_lm.writing import chosen_examples, require_writing, write
from lora_a2.tasks.classification import TASK as LABELS


def evaluate_run(
    run_dir: str | Path,
    data: DataSource | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    client_column: str | None = None,
    trust_remote_code: bool = False,
    generate: int = 0,
    **columns: str | None,
) -> Evaluation:
    """A run's model on its own clients' test shares, or on other data of the same task, as `load_data` takes them.

    Tables of clients, and of classes, are in it. Of a run that is not finished it is the model of the last finished round.
    `generate`: test examples that a model which writes answers. `columns` are those of its data: prompt_column, completion_column,
    messages_column, references_column; and how files of `data` are read: the fields of `FileOptions`.

    Raises:
        RunError: no round is finished, the run is damaged, or the model is no longer what it was.
        DataError: the data cannot be read, or have labels that the model does not know.
        ConfigError: an option that is of the other task.
    """
    run = RunDirectory.open(Path(run_dir))
    if not run.is_finished:
        run.kept_round()
    config = config_of(run, trust_remote_code)
    file = take_file_options(columns)
    if config.task == CAUSAL_LM:
        _refuse(config.task, {"label_column": label_column})
    else:
        _refuse(config.task, {**columns, "generate": generate})
    if data is None:
        return _on_its_own(run, config, generate)
    given = {"text_column": text_column, "client_column": client_column, **columns}
    if config.task == CAUSAL_LM:
        return _writer_on(run, config, data, given, file, generate)
    return _classifier_on(run, config, data, {**given, "label_column": label_column}, file)


def _refuse(task: str | None, given: Mapping[str, object]) -> None:
    """Refuses options of another task.

    Raises:
        ConfigError: one is given.
    """
    for name, value in given.items():
        if value:
            raise ConfigError(
                f"{kebab(name)}: it has no effect on a run of the task {task or CLASSIFICATION}; leave it out."
            )


def _on_its_own(run: RunDirectory, config: RunConfig, generate: int) -> Evaluation:
    setup, state = reopened(run, config)
    if generate:
        require_writing(setup.model)
    with make_pool(setup.model, setup.plan) as pool:
        return evaluate_clients(
            setup.model, pool, state, setup.clients, generate, config.seed, label_names=setup.data.label_names
        )


def _classifier_on(
    run: RunDirectory, config: RunConfig, data: DataSource, columns: Mapping[str, str | None], file: FileOptions
) -> Evaluation:
    predictor = load_predictor(run.path, trust_remote_code=config.trust_remote_code)
    examples = load_examples(
        data,
        predictor.label_names,
        text_column=columns["text_column"],
        label_column=columns["label_column"],
        client_column=columns["client_column"],
        usual_columns=(config.text_column, config.label_column, config.client_column),
        strip_newsgroups=config.strip_newsgroups,
        **vars(file),
    )
    outputs, labels = predictor.logits(examples.texts), examples.labels
    parts = by_client(examples.clients)
    clients = {name: LABELS.statistics(outputs[rows], labels[rows]) for name, rows in parts.items()}
    found = evaluate(LABELS, LABELS.statistics(outputs, labels), clients)
    return with_tables(LABELS, found, clients, LABELS.tables(outputs, labels, predictor.label_names))


def _writer_on(
    run: RunDirectory,
    config: RunConfig,
    data: DataSource,
    columns: Mapping[str, str | None],
    file: FileOptions,
    generate: int,
) -> Evaluation:
    """Where no column is named, by the run's own names, if the data have them."""
    model = model_of(run, config)
    state = state_of(run, model)
    if not any(columns.values()):
        found = find_tables(data, file)
        there = (found.test or found.train).names
        columns = {name: own for name in columns if (own := getattr(config, name)) in there}
    options: Any = {**columns, **vars(file)}
    samples = load_samples(data, WrittenOptions(**options))
    return evaluate_samples(model, state.adapter, state.base, samples, generate, config.seed)


def by_client(names: Sequence[str] | None) -> dict[str, np.ndarray]:
    """Client → its rows, in the order of the names; empty where the examples are nobody's."""
    known = np.array(names if names is not None else [])
    return {str(name): np.flatnonzero(known == name) for name in np.unique(known)}


def evaluate_model(config: RunConfig) -> Evaluation:
    """The model of a configuration, untrained, on the test set of its data, or on all of them if there is none.

    Raises:
        ConfigError: the task is classification: such a model has no labels yet.
        DataError, ModelError: data or model cannot be used.
    """
    if config.task != CAUSAL_LM:
        raise ConfigError("task: a classifier without a run has no labels; give a RUN_DIR, or --task causal-lm.")
    samples = load_samples(**config.data_options())
    model = open_model(config, ())
    return evaluate_samples(model, None, {}, samples, config.generate, config.seed)


def evaluate_samples(
    model: Model, adapter: Adapter | None, base: BaseDelta, samples: Samples, generate: int = 0, seed: int = 0
) -> Evaluation:
    """A model with an adapter, on base weights moved by `base`; the counts of examples are in its `extra`.

    Raises:
        DataError: in no example is anything learnt.
    """
    if generate:
        require_writing(model)
    encoded = model.encode(samples)
    if not len(encoded.examples):
        raise DataError(
            f"In none of the {len(samples)} examples is there anything to learn: check the columns and --max-length."
        )
    with make_workers(model) as pool:
        outputs = measure(pool, adapter, base, encoded.examples)
        task, labels = model.task, encoded.examples.labels
        total = dict(task.statistics(outputs, labels))
        if generate:
            part = encoded.examples.take(chosen_examples(encoded.examples, generate, seed))
            total |= text_statistics(write(model, pool, adapter, base, part), part.references)
    owners = None if samples.clients is None else [samples.clients[row] for row in encoded.rows]
    clients = {
        name: task.statistics(outputs[rows], encoded.examples.labels_at(rows))
        for name, rows in by_client(owners).items()
    }
    extra = {
        "loss_sum": float(total["loss_sum"]),
        "learnt_tokens": int(total["learnt_tokens"]),
        "examples_used": len(encoded.examples),
        "examples_cut": encoded.num_cut,
        "examples_dropped": encoded.num_dropped,
    }
    return with_tables(task, evaluate(task, total, clients, extra), clients, task.tables(outputs, labels, ()))
