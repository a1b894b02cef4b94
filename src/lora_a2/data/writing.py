"""Chats and texts from wherever the user has them: checked, and divided into a training and a test set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypedDict, Unpack

from lora_a2.core.randomness import generator
from lora_a2.data import subsets
from lora_a2.data.chats import WrittenColumns, find_written_columns, read_samples
from lora_a2.data.columns import opening, require
from lora_a2.data.finding import Tables, find_tables, find_test_table
from lora_a2.data.objects import DataSource
from lora_a2.data.options import DEFAULT_TEST_FRACTION, check_fractions
from lora_a2.data.sources import check_owners, clients_of
from lora_a2.data.tables import AnyTable
from lora_a2.data.written import Samples, WrittenData
from lora_a2.errors import ConfigError, DataError


@dataclass(frozen=True)
class WrittenOptions:
    """How `load_written` reads a data set; as `DataOptions`, with other columns.

    Attributes:
        messages_column: of chats; prompt_column, completion_column: of prompts and answers; text_column: of plain texts. One of
            these ways, found by the usual names where all are None.
        references_column: of lists of further right answers.

    Raises:
        ConfigError: one is out of range, or two exclude each other.
    """

    messages_column: str | None = None
    prompt_column: str | None = None
    completion_column: str | None = None
    references_column: str | None = None
    text_column: str | None = None
    client_column: str | None = None
    test_data: DataSource | None = None
    test_fraction: float | None = None
    validation_fraction: float | None = None
    max_examples: int | None = None
    max_test_examples: int | None = None
    seed: int = 0
    hold_out: float = DEFAULT_TEST_FRACTION

    def __post_init__(self) -> None:
        check_fractions(self.test_fraction, self.validation_fraction, self.test_data)
        for name, most in (("max-examples", self.max_examples), ("max-test-examples", self.max_test_examples)):
            if most is not None and most < 1:
                raise ConfigError(f"{name} is {most}: it must be at least 1.")

    def columns(self, table: AnyTable) -> WrittenColumns:
        """The columns of a table.

        Raises:
            DataError: they are not there, or cannot be told.
        """
        return find_written_columns(
            table.names,
            table.source,
            messages=self.messages_column,
            text=self.text_column,
            prompt=self.prompt_column,
            completion=self.completion_column,
            references=self.references_column if self.references_column in table.names else None,
            client=self.client_column,
        )


class WrittenKeywords(TypedDict, total=False):
    """The fields of `WrittenOptions`, for who gives some of them as keywords."""

    messages_column: str | None
    prompt_column: str | None
    completion_column: str | None
    references_column: str | None
    text_column: str | None
    client_column: str | None
    test_data: DataSource | None
    test_fraction: float | None
    validation_fraction: float | None
    max_examples: int | None
    max_test_examples: int | None
    seed: int
    hold_out: float


def load_written(
    data: DataSource = "shopdesk", options: WrittenOptions | None = None, **given: Unpack[WrittenKeywords]
) -> WrittenData:
    """Reads a data set to learn to write from, with a training and a test set; `data` as in `load_data`.

    `given` are single fields of `WrittenOptions`, which come before those of `options`.

    Raises:
        DataError: the data cannot be found, read, or used.
        ConfigError: an option that has nothing to act on.
    """
    o = replace(options or WrittenOptions(), **given)
    found = find_tables(data)
    if o.test_data is not None:
        found = replace(found, test=find_test_table(o.test_data))
    check_owners(found, o.client_column)
    if found.test is not None and o.test_fraction is not None:
        raise ConfigError(
            f"{opening(found.name)} has its own test set, so test-fraction {o.test_fraction} has nothing to hold out; leave "
            "it out, or give the training set alone."
        )
    tables = [table for table in (found.train, found.test) if table is not None]
    if o.references_column is not None:  # the training set may do without
        require(o.references_column, tables[-1].names, tables[-1].source)
    train = _samples(found.train, o)
    if not len(train):
        raise DataError(f"{opening(found.train.source)} has no rows to train on; give a table with some.")
    test = None if found.test is None else _samples(found.test, o)
    notes = [
        note
        for table, part in zip(tables, (train, test), strict=False)
        if part is not None and (note := _unanswered(part, table.source))
    ]
    if test is None:
        train, test = _held_out(train, o.test_fraction or o.hold_out, o.seed)
    if o.validation_fraction is not None:
        train, test = _held_out(train, o.validation_fraction, o.seed)
    if o.max_examples is not None:
        train = train.take(subsets.at_most(train.labels, o.max_examples, generator(o.seed, "max-examples")))
    if o.max_test_examples is not None:
        rng = generator(o.seed, "max-test-examples")
        test = test.take(subsets.at_most(test.labels, o.max_test_examples, rng, "max-test-examples"))
    return WrittenData(found.name, train, test, tuple(notes))


def load_samples(
    data: DataSource,
    options: WrittenOptions | None = None,
    *,
    training: bool = False,
    **given: Unpack[WrittenKeywords],
) -> Samples:
    """The test set of `data`, or all of it if it has none; with `training` its training set.

    Raises:
        DataError: the data cannot be found, read, or used.
    """
    o = replace(options or WrittenOptions(), **given)
    found: Tables = find_tables(data)
    return _samples(found.train if training else found.test or found.train, o)


def _samples(table: AnyTable, o: WrittenOptions) -> Samples:
    samples = read_samples(table, o.columns(table))
    clients: Sequence[str] | None = clients_of(table, o.client_column)
    return Samples(tuple(samples), None if clients is None else tuple(clients))


def _unanswered(samples: Samples, source: str) -> str:
    """What to say of chats whose last turn is nobody's answer; "" if there are none."""
    count = sum(bool(sample.turns) and sample.turns[-1].role != "assistant" for sample in samples.samples)
    what = "chat ends" if count == 1 else "chats end"
    return f"{count} {what} with a turn that nobody answers in {source}: it is left out." if count else ""


def _held_out(samples: Samples, fraction: float, seed: int) -> tuple[Samples, Samples]:
    train, test = subsets.hold_out(samples.labels, samples.clients, fraction, generator(seed, "hold-out"))
    if not len(test):
        raise DataError(
            f"Holding out {fraction:g} of {len(samples)} examples leaves none for testing; give more data, or a test set with "
            "--test-data."
        )
    return samples.take(train), samples.take(test)
