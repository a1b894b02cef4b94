"""What a model is fine-tuned for: how it is measured, and by what runs are compared. One file, or one room, a task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lora_a2.core.shown import count, shown
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


CLIENT_FIGURES = ("client_mean", "client_worst_tenth", "client_std")
"""The figures of an `Evaluation` that follow from the clients' values of the primary metric."""
PERSONAL = "personal"
"""What holds the evaluation of the clients' own models, among the metrics of a round; `personal_…` where figures stand side by side."""
PERCENT = " %"

Statistics = Mapping[str, np.ndarray]
"""Sums over examples, by name: those of several clients are added up, array by array."""
Tables = Mapping[str, Sequence[Mapping[str, Any]]]
"""Name → rows; what should be looked at first is first."""


@dataclass(frozen=True)
class Guess:
    """What the primary metric would be without looking at a text.

    Attributes:
        name: its key in an evaluation.
        shown: what it is called at the beginning of a line.
        value: by the statistics; None where they do not say.
    """

    name: str
    shown: str
    value: Callable[[Statistics], float | None]


def no_tables(outputs: FloatArray, labels: Labels, label_names: Sequence[str]) -> Tables:
    """Of a task that has nothing to say beyond its metrics."""
    return {}


@dataclass(frozen=True)
class Task:
    """A row of `TASKS`.

    Attributes:
        name: as typed on the command line.
        encode: examples of its data set as tokens and labels, by a tokenizer.
        primary: the metric by which models are compared.
        measures: every metric → what it is called in tables and lines, without a capital; the primary one is first.
        plural: what several values of it are called.
        higher_is_better: which way.
        shared: the statistics that a node tells a server; the others say more of its data.
        received: the shared statistics in what a node states, for this many examples of at most this many tokens; with those of
            written texts if it was asked for some. ValueError for what cannot be.
        statistics: sums over examples, from what the objective measured of them (n, W) and their labels.
        metrics: what the sums come to.
        show: a value of the primary metric as text.
        proportions: metrics that are the share of the test examples that are right: of them there are intervals.
        absolute: metrics that are no fractions of 1.
        optional: metrics that only some evaluations have.
        command: what a finished run's model is tried with.
        guess: what the metrics are to be seen beside; None: nothing.
        tables: what is known beyond the metrics, of what was measured of examples (n, W), their labels, and the labels' names.
    """

    name: str
    encode: Callable[[PreTrainedTokenizerBase, Any, EncodingOptions], Encoded]
    primary: str
    measures: Mapping[str, str]
    plural: str
    higher_is_better: bool
    shared: tuple[str, ...]
    received: Callable[[Mapping[str, object], int, int, bool], Statistics]
    statistics: Callable[[FloatArray, Labels], Statistics]
    metrics: Callable[[Statistics], dict[str, float]]
    show: Callable[[float], str]
    command: str
    proportions: tuple[str, ...] = ()
    absolute: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    guess: Guess | None = None
    tables: Callable[[FloatArray, Labels, Sequence[str]], Tables] = no_tables

    def lines(self, metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
        """The metrics of an evaluation but the primary one, and what they are to be seen beside: names and values as text."""
        found = [
            (self.title(name), self.show_metric(name, metrics[name]))
            for name in self.measures
            if name != self.primary and name in metrics
        ]
        if self.guess is not None and self.guess.name in metrics:
            found.append((self.guess.shown, self.show(metrics[self.guess.name])))
        return found

    @property
    def shown(self) -> str:
        """What the primary metric is called in tables and lines, without a capital."""
        return self.measures[self.primary]

    def title(self, name: str) -> str:
        """What a metric is called at the head of a column."""
        text = self.measures[name]
        return text[0].upper() + text[1:]

    @property
    def headline(self) -> str:
        """What the primary metric is called at the head of a column."""
        return self.title(self.primary)

    def columns(self, evaluations: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
        """The metrics of a table of these evaluations: the optional ones only if one has them."""
        there = set().union(*evaluations)
        return tuple(name for name in self.measures if name not in self.optional or name in there)

    def is_fraction(self, name: str | None = None) -> bool:
        """Whether a metric, or a figure of `CLIENT_FIGURES`, is a fraction of 1, which is shown in percent; by default the primary one."""
        return (self.primary if name is None or name in CLIENT_FIGURES else name) not in self.absolute

    def show_metric(self, name: str, value: float) -> str:
        """A value of any metric as text: of the primary one and of the clients' figures as it is shown, of others that are
        fractions of 1 in percent."""
        if name == self.primary or name in CLIENT_FIGURES:
            return self.show(value)
        return f"{100 * value:.1f}{PERCENT}" if self.is_fraction(name) else f"{value:.4g}"

    def number(self, name: str, value: float) -> str:
        """As `show_metric`, for columns that have the unit at their head."""
        return self.show_metric(name, value).removesuffix(PERCENT)

    def unit(self, name: str | None = None) -> str:
        """What stands behind a number of a metric: " %" or nothing; by default of the primary one."""
        return PERCENT if self.is_fraction(name) else ""

    def difference(self, value: float, reference: float) -> str:
        """How far a value of the primary metric lies from another, as text with a sign."""
        points = 100 * (value - reference)
        text = f"{points:+.1f} points" if self.is_fraction() else f"{value - reference:+.2f}"
        return text.replace("-", "−")

    def worse(self, value: float) -> float:
        """A number that is the larger, the worse a value of the primary metric is."""
        return -value if self.higher_is_better else value

    def reaches(self, value: float, share: float, best: float) -> bool:
        """Whether a value of the primary metric is at least a share (0..1) as good as the best: of what should be small, it is
        at most best / share."""
        return value >= share * best if self.higher_is_better else value * share <= best


@dataclass(frozen=True)
class Evaluation:
    """How good a model is. The client figures are of the task's primary metric, and None if nobody has a test example of their own.

    Attributes:
        metrics: of all examples together, by name.
        num_examples: how many these are.
        client_mean, client_std: mean and population standard deviation over the clients.
        client_worst_tenth: mean of the worst tenth of the clients, at least one.
        per_client: client name → value, of those with test examples.
        per_client_examples: client name → how many these are.
        extra: what else is known of the examples, by name.
        tables: what else was asked for, by name: the clients, and what the task tells.
    """

    metrics: dict[str, float]
    num_examples: int
    client_mean: float | None
    client_worst_tenth: float | None
    client_std: float | None
    per_client: dict[str, float]
    per_client_examples: dict[str, int]
    extra: Mapping[str, int | float] = field(default_factory=dict)
    tables: Tables = field(default_factory=dict)

    def __repr__(self) -> str:
        return shown(
            self, count(self.num_examples, "example"), *(f"{name}={value:.4g}" for name, value in self.metrics.items())
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for `json.dumps`."""
        return {
            **self.metrics,
            "num_examples": self.num_examples,
            "client_mean": self.client_mean,
            "client_worst_tenth": self.client_worst_tenth,
            "client_std": self.client_std,
            "per_client": self.per_client,
            "per_client_examples": self.per_client_examples,
            **self.extra,
            **self.tables,
        }


def flattened(statistics: Statistics) -> dict[str, int | float]:
    """Arrays as plain numbers, entry k of `name` as name.k."""
    return {f"{name}.{k}": value.item() for name, own in statistics.items() for k, value in enumerate(np.ravel(own))}


def stated(values: Mapping[str, object], name: str, least: float, most: float, *, whole: bool = True) -> np.ndarray:
    """A number that a node states.

    Raises:
        ValueError: it is missing, of another type, or out of bounds.
    """
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not least <= value <= most:
        kind = "whole number" if whole else "number"
        raise ValueError(f"{name} = {str(value)[:40]}; expected a {kind} from {least:g} to {most:g}")
    return np.array(value)


def evaluate(
    task: Task, total: Statistics, clients: Mapping[str, Statistics], extra: Mapping[str, int | float] | None = None
) -> Evaluation:
    """What the sums over all examples, and over each client's, come to."""
    per_client = {name: task.metrics(own)[task.primary] for name, own in clients.items() if own["num_examples"] > 0}
    guess = None if task.guess is None else task.guess.value(total)
    beside = {} if task.guess is None or guess is None else {task.guess.name: guess}
    return Evaluation(
        task.metrics(total),
        int(total["num_examples"]),
        **client_figures(task, per_client),
        per_client_examples={name: int(clients[name]["num_examples"]) for name in per_client},
        extra={**beside, **(extra or {})},
    )


def with_tables(task: Task, found: Evaluation, clients: Mapping[str, Statistics], tables: Tables) -> Evaluation:
    """With the task's own tables, and one of the clients, the worst first."""
    rows = [
        {"client": name, "num_examples": int(clients[name]["num_examples"]), task.primary: value}
        for name, value in sorted(found.per_client.items(), key=lambda item: task.worse(item[1]), reverse=True)
    ]
    return replace(found, tables={"clients": rows, **tables})


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
