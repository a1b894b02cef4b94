"""How good a language model that writes is on given examples, with or without a run."""

from __future__ import annotations

import numpy as np

from lora_a2.config.run import RunConfig
from lora_a2.config.setup import open_model
from lora_a2.core.types import Adapter, BaseDelta
from lora_a2.data.writing import load_samples
from lora_a2.data.written import Samples
from lora_a2.engine.evaluate import measure
from lora_a2.errors import ConfigError, DataError
from lora_a2.model.pretrained import Model
from lora_a2.settings.task import CAUSAL_LM
from lora_a2.simulation import make_workers
from lora_a2.tasks.base import Evaluation, Statistics, evaluate
from lora_a2.tasks.causal_lm.scores import text_statistics
from lora_a2.tasks.causal_lm.writing import chosen_examples, require_writing, write


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
    clients: dict[str, Statistics] = {}
    if samples.clients is not None:
        names = np.array(samples.clients)[encoded.rows]
        for name in np.unique(names):
            rows = np.flatnonzero(names == name)
            clients[str(name)] = task.statistics(outputs[rows], encoded.examples.labels_at(rows))
    extra = {
        "loss_sum": float(total["loss_sum"]),
        "learnt_tokens": int(total["learnt_tokens"]),
        "examples_used": len(encoded.examples),
        "examples_cut": encoded.num_cut,
        "examples_dropped": encoded.num_dropped,
    }
    return evaluate(task, total, clients, extra)
