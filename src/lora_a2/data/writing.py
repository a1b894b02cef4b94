"""Chats and texts from wherever the user has them: checked, and divided into a training and a test set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Unpack

from lora_a2.data.chats import WrittenColumns, find_written_columns, read_samples
from lora_a2.data.columns import opening, require
from lora_a2.data.finding import Tables, find_tables, find_test_table
from lora_a2.data.objects import DataSource
from lora_a2.data.options import ReadingKeywords, ReadingOptions
from lora_a2.data.sources import check_owners, clients_of
from lora_a2.data.subsets import divided
from lora_a2.data.tables import AnyTable
from lora_a2.data.written import Samples, WrittenData
from lora_a2.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class WrittenOptions(ReadingOptions):
    """How `load_written` reads a data set.

    Attributes:
        messages_column: of chats; prompt_column, completion_column: of prompts and answers; text_column: of plain texts. One of
            these ways, found by the usual names where all are None.
        references_column: of lists of further right answers.
    """

    messages_column: str | None = None
    prompt_column: str | None = None
    completion_column: str | None = None
    references_column: str | None = None

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


class WrittenKeywords(ReadingKeywords, total=False):
    """The fields of `WrittenOptions`, for who gives some of them as keywords."""

    messages_column: str | None
    prompt_column: str | None
    completion_column: str | None
    references_column: str | None


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
    train, test = divided(train, test, o)
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
