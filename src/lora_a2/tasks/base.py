"""What a model is fine-tuned for: how it is measured, and by what runs are compared. One file, or one room, a task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lora_a2.core.types import FloatArray
from lora_a2.data.partition import IntArray
from lora_a2.engine.work import Labels, TokenizedExamples

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class EncodingOptions:
    """How examples become tokens.

    Attributes:
        max_length: tokens after which an example is cut.
        system_prompt: what stands before every chat that has no system turn of its own; None: nothing.
        chat_template: the text of a Jinja template that takes the place of the tokenizer's own; None: its own, if it has one.
        train_on: what is learnt of a chat: the assistant's turns ("completion"), or all of it.
        strips_padding: of texts to be labelled, padding tokens at the end are cut off.
    """

    max_length: int = 128
    system_prompt: str | None = None
    chat_template: str | None = None
    train_on: Literal["completion", "all"] = "completion"
    strips_padding: bool = False


@dataclass(frozen=True)
class Encoded:
    """Examples as the engine takes them.

    Attributes:
        examples: token ids and labels.
        rows: (n,) int64, which of the given examples these are; dropped ones are not among them.
        num_cut: how many lost tokens to `max_length`.
        num_dropped: in how many there was nothing to learn from.
        notes: what the user should know, each told once.
    """

    examples: TokenizedExamples
    rows: IntArray
    num_cut: int = 0
    num_dropped: int = 0
    notes: tuple[str, ...] = ()

    def of(self, rows: IntArray) -> TokenizedExamples:
        """Those of the given examples at `rows` that are left, in that order."""
        place = {int(row): i for i, row in enumerate(self.rows)}
        return self.examples.take(np.array([place[int(row)] for row in rows if int(row) in place], np.int64))


Statistics = Mapping[str, np.ndarray]
"""Sums over examples, by name: those of several clients are added up, array by array."""


@dataclass(frozen=True)
class Task:
    """A row of `TASKS`.

    Attributes:
        name: as typed on the command line.
        encode: examples of its data set as tokens and labels, by a tokenizer.
        primary: the metric by which models are compared.
        higher_is_better: which way.
        shared: the statistics that a node tells a server; the others say more of its data.
        limits: the most that each of these can be, and the least is 0, for this many examples of at most this many tokens.
        statistics: sums over examples, from what the objective measured of them (n, W) and their labels.
        metrics: what the sums come to.
        shown: what the primary metric is called in tables and lines, without a capital.
        show: a value of it as text.
        absolute: metrics that are no fractions of 1.
        command: what a finished run's model is tried with.
    """

    name: str
    encode: Callable[[PreTrainedTokenizerBase, Any, EncodingOptions], Encoded]
    primary: str
    higher_is_better: bool
    shared: tuple[str, ...]
    limits: Callable[[int, int], Mapping[str, int | float]]
    statistics: Callable[[FloatArray, Labels], Statistics]
    metrics: Callable[[Statistics], dict[str, float]]
    shown: str
    show: Callable[[float], str]
    command: str
    absolute: tuple[str, ...] = ()

    def show_metric(self, name: str, value: float) -> str:
        """A value of any metric as text: of the primary one as it is shown, of others that are fractions of 1 in percent."""
        if name == self.primary:
            return self.show(value)
        return f"{value:.4g}" if name in self.absolute else f"{100 * value:.1f} %"

    def worse(self, value: float) -> float:
        """A number that is the larger, the worse a value of the primary metric is."""
        return -value if self.higher_is_better else value


@dataclass(frozen=True)
class Evaluation:
    """How good a model is. The client figures are of the task's primary metric, and None if nobody has a test example of their own.

    Attributes:
        metrics: of all examples together, by name.
        num_examples: how many these are.
        client_mean, client_std: mean and population standard deviation over the clients.
        client_worst_tenth: mean of the worst tenth of the clients, at least one.
        per_client: client name → value, of those with test examples.
    """

    metrics: dict[str, float]
    num_examples: int
    client_mean: float | None
    client_worst_tenth: float | None
    client_std: float | None
    per_client: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for `json.dumps`."""
        return {
            **self.metrics,
            "num_examples": self.num_examples,
            "client_mean": self.client_mean,
            "client_worst_tenth": self.client_worst_tenth,
            "client_std": self.client_std,
            "per_client": self.per_client,
        }


def received(
    task: Task, values: Mapping[str, object], num_examples: int, max_length: int, ending: str = ""
) -> Statistics:
    """The shared statistics that a node states, `ending` behind their names, for its number of examples.

    Raises:
        ValueError: one is missing, of another type, or out of bounds.
    """
    limits = task.limits(num_examples, max_length)
    found = {"num_examples": np.array(num_examples)}
    for name in task.shared:
        if name in found:
            continue
        value, most = values.get(f"{name}{ending}"), limits[name]
        whole = isinstance(most, int)
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not 0 <= value <= most:
            raise ValueError(
                f"{name}{ending} = {str(value)[:40]}; expected a {'whole ' if whole else ''}number from 0 to {most:g}"
            )
        found[name] = np.array(value)
    return found


def evaluate(task: Task, total: Statistics, clients: Mapping[str, Statistics]) -> Evaluation:
    """What the sums over all examples, and over each client's, come to."""
    per_client = {name: task.metrics(own)[task.primary] for name, own in clients.items() if own["num_examples"] > 0}
    return Evaluation(task.metrics(total), int(total["num_examples"]), **client_figures(task, per_client))


def summed(parts: Iterable[Statistics]) -> Statistics:
    """The statistics of all parts together.

    Raises:
        ValueError: there are none, or they have different names.
    """
    total: dict[str, np.ndarray] = {}
    for part in parts:
        if total and total.keys() != part.keys():
            raise ValueError(f"statistics of different kinds: {sorted(total)} and {sorted(part)}")
        total = {name: total[name] + value if total else value for name, value in part.items()}
    if not total:
        raise ValueError("no statistics to add up")
    return total


def client_figures(task: Task, per_client: dict[str, float]) -> dict[str, Any]:
    """The figures of an `Evaluation` that follow from the clients' values of the primary metric."""
    values = np.array(sorted(per_client.values(), key=task.worse, reverse=True))
    tenth = max(1, round(len(values) / 10))
    return {
        "client_mean": float(values.mean()) if len(values) else None,
        "client_worst_tenth": float(values[:tenth].mean()) if len(values) else None,
        "client_std": float(values.std()) if len(values) else None,
        "per_client": per_client,
    }
