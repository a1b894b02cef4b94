"""Chats and texts from wherever the user has them: checked, and divided into a training and a test set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Unpack

from lora_a2.data.chats import WrittenColumns, find_written_columns, read_samples
from lora_a2.data.columns import opening, require
from lora_a2.data.doubts import numbers, shared, single_clients
from lora_a2.data.finding import Tables, find_tables, open_tables
from lora_a2.data.missing import complete
from lora_a2.data.objects import DataSource
from lora_a2.data.options import ReadingKeywords, ReadingOptions
from lora_a2.data.sources import clients_of, warn
from lora_a2.data.subsets import divided
from lora_a2.data.tables import AnyTable
from lora_a2.data.written import Sample, Samples, WrittenData
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
    found = open_tables(data, o)
    if found.test is not None and o.test_fraction is not None:
        raise ConfigError(
            f"{opening(found.name)} has its own test set, so test-fraction {o.test_fraction} has nothing to hold out; leave "
            "it out, or give the training set alone."
        )
    if o.references_column is not None:  # the training set may do without
        require(o.references_column, found.tables[-1].names, found.tables[-1].source)
    parts = [_read(table, o) for table in found.tables]
    if not len(parts[0].samples):
        raise DataError(f"{opening(found.train.source)} has no rows to train on; give a table with some.")
    notes = [note for part in parts for note in (*part.notes, *_unanswered(part))]
    columns = o.columns(found.train)
    train, test = divided(parts[0].samples, parts[1].samples if len(parts) > 1 else None, o)
    doubts = [*_doubts(parts[0], columns), *shared(_bare(train), _bare(test))]
    return WrittenData(found.name, train, test, (*found.notes, *notes, *doubts), columns.named())


@dataclass(frozen=True)
class _Part:
    """What a table holds; `notes` on rows that were left out."""

    table: AnyTable
    samples: Samples
    notes: tuple[str, ...]


def _doubts(train: _Part, columns: WrittenColumns) -> list[str]:
    """What may be wrong with the training rows."""
    asked = columns.text or columns.prompt
    return [
        *(numbers(train.table.column(asked), asked) if asked is not None else ()),
        *single_clients(train.samples.clients, columns.client),
    ]


def _bare(part: Samples) -> list[Sample]:
    return [replace(sample, references=()) for sample in part.samples]


def load_samples(
    data: DataSource,
    options: WrittenOptions | None = None,
    *,
    training: bool = False,
    say: Callable[[str], None] = warn,
    **given: Unpack[WrittenKeywords],
) -> Samples:
    """The test set of `data`, or all of it if it has none; with `training` its training set.

    `say` is told of rows that are left out.

    Raises:
        DataError: the data cannot be found, read, or used.
    """
    o = replace(options or WrittenOptions(), **given)
    found: Tables = find_tables(data, o)
    part = _read(found.train if training else found.test or found.train, o)
    for note in (*found.notes, *part.notes):
        say(note)
    return part.samples


def _read(table: AnyTable, o: WrittenOptions) -> _Part:
    columns = o.columns(table)
    table, notes = complete(table, columns.needed(), o.on_missing)
    samples = read_samples(table, columns)
    clients: Sequence[str] | None = clients_of(table, o.client_column)
    return _Part(table, Samples(tuple(samples), None if clients is None else tuple(clients)), notes)


def _unanswered(part: _Part) -> list[str]:
    """What to say of chats whose last turn is nobody's answer."""
    count = sum(bool(sample.turns) and sample.turns[-1].role != "assistant" for sample in part.samples.samples)
    what = "chat ends" if count == 1 else "chats end"
    return [f"{count} {what} with a turn that nobody answers in {part.table.source}: it is left out."] if count else []
