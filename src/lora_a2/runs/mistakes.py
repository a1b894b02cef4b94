"""Where a run's classifier is wrong: the classes that it confuses, and the test examples that it is wrongly sure of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import softmax

from lora_a2.data.partition import IntArray
from lora_a2.engine.evaluate import measure
from lora_a2.engine.work import end_to_end
from lora_a2.errors import RunError
from lora_a2.runs.configured import config_of
from lora_a2.runs.directory import RunDirectory
from lora_a2.runs.unfinished import reopened
from lora_a2.settings.task import CAUSAL_LM
from lora_a2.simulation import make_pool
from lora_a2.tasks.classification.classes import confusion


@dataclass(frozen=True)
class Mistake:
    """A test example with another label than the model gives it, and the probability of the latter. `text` is what the model read."""

    text: str
    label: str
    predicted: str
    probability: float
    client: str


@dataclass(frozen=True)
class Mistakes:
    """A model on its clients' test examples, C classes.

    Attributes:
        label_names: of the classes.
        confusion: (C, C), examples of each class (row) by the class that they were taken for (column).
        worst: the wrong examples with the highest probability, the highest first.
    """

    label_names: tuple[str, ...]
    confusion: IntArray
    worst: Sequence[Mistake]

    @property
    def num_examples(self) -> int:
        """All of them."""
        return int(self.confusion.sum())

    @property
    def num_wrong(self) -> int:
        """Those off the diagonal."""
        return self.num_examples - int(self.confusion.trace())


def mistakes_of(run_dir: str | Path, number: int, trust_remote_code: bool = False) -> Mistakes:
    """The mistakes of a finished run's global model, with at most `number` examples.

    The run's data are read again, so that they are shown only where they are.

    Raises:
        RunError: the run is not finished, is damaged, or its model writes texts and gives no labels.
        DataError, ModelError: data or model cannot be used any more, or are others.
    """
    run = RunDirectory.open(Path(run_dir))
    run.require_finished()
    config = config_of(run, trust_remote_code)
    if config.task == CAUSAL_LM:
        raise RunError(f"{run_dir} has a model that writes, which gives no labels.")
    setup, state = reopened(run, config)
    model = setup.model
    tests = end_to_end([client.test for client in setup.clients])
    owners = [client.name for client in setup.clients for _ in range(len(client.test))]
    with make_pool(model, setup.plan) as pool:
        logits = measure(pool, state.adapter, state.base, tests)
    given, predicted = np.asarray(tests.labels, np.int64), logits.argmax(1)
    probability = softmax(logits.astype(np.float64), axis=1).max(1)
    wrong = np.flatnonzero(predicted != given)
    names = setup.data.label_names
    worst = [
        Mistake(
            text=str(model.tokenizer.decode(tests.input_ids[row], skip_special_tokens=True)).strip(),
            label=names[given[row]],
            predicted=names[predicted[row]],
            probability=float(probability[row]),
            client=owners[row],
        )
        for row in wrong[np.argsort(-probability[wrong], kind="stable")][:number]
    ]
    return Mistakes(tuple(names), confusion(logits, given), worst)
