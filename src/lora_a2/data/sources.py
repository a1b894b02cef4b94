"""Labelled texts from wherever the user has them: checked, numbered, and divided into a training and a test set."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Unpack

import numpy as np

from lora_a2.data.columns import Columns, find_columns, opening, require
from lora_a2.data.finding import BUILT_IN, Tables, find_tables, find_test_table
from lora_a2.data.labelled import Examples, LabelledData
from lora_a2.data.newsgroups import is_newsgroups, is_raw, strip_article
from lora_a2.data.objects import DataSource
from lora_a2.data.options import DEFAULT_TEST_FRACTION, DataKeywords, DataOptions
from lora_a2.data.partition import IntArray
from lora_a2.data.subsets import divided
from lora_a2.data.tables import AnyTable
from lora_a2.errors import ConfigError, DataError

__all__ = ["BUILT_IN", "DEFAULT_TEST_FRACTION", "Examples", "LabelledData", "load_data"]


@dataclass(frozen=True)
class _Rows:
    """Checked but not yet numbered: labels and clients as strings."""

    table: AnyTable
    texts: list[str]
    labels: list[str]
    clients: list[str] | None


def load_data(
    data: DataSource = "helpdesk", options: DataOptions | None = None, **given: Unpack[DataKeywords]
) -> LabelledData:
    """Reads a labelled data set with a training and a test set. Labels are numbered in the order of their names.

    Args:
        data: a name of `BUILT_IN`; a file; a folder with a train file and, possibly, a test file and a labels.json
            (a list that names the class numbers); or the id of a data set on the Hugging Face hub, owner/name or
            owner/name:config. A built-in name comes before a folder of that name; write ./name for the folder.
            Or what is in memory: a `datasets.Dataset`, a `datasets.DatasetDict` (its test split is the test set, or else its
            validation split), a pandas `DataFrame` (rows count from 1, whatever its index says), or a mapping from each
            client's name to one of these, whose keys then say whose each example is.
        options: how it is read; None: the usual way.
        given: single fields of `DataOptions`, which come before those of `options`.

    Raises:
        DataError: the data cannot be found, read, or used as a classification task.
        ConfigError: an option that is out of range or has nothing to act on.
        TypeError: there is no such option.
    """
    o = replace(options or DataOptions(), **given)
    found = find_tables(data)
    if o.test_data is not None:
        found = replace(found, test=find_test_table(o.test_data))
    check_owners(found, o.client_column)
    columns = find_columns(found.train.names, found.train.source, o.text_column, o.label_column, o.client_column)
    chosen, notes = _labelled_test(found, columns)
    if chosen is not None and o.test_fraction is not None:
        raise ConfigError(
            f"{_quoted(data, found)} has its own test set, so test-fraction {o.test_fraction} has nothing to hold out; leave "
            "it out, or give the training set alone."
        )
    parts = [_rows(table, columns) for table in (found.train, chosen) if table is not None]
    parts = _named(parts, found.class_names)
    label_names = _label_names(parts[0]) if o.label_names is None else tuple(o.label_names)
    if is_newsgroups(label_names):
        parts = _stripped(parts) if o.strip_newsgroups and is_raw(parts[0].texts) else parts
    else:  # stripped articles may be empty, and count in the published sizes; elsewhere an empty text is a mistake
        _check_texts(parts)
    train = _numbered(parts[0], label_names)
    test = _numbered(parts[1], label_names) if len(parts) > 1 else None
    train, test = divided(train, test, o)
    return LabelledData(found.name, train, test, label_names, notes)


def _quoted(data: DataSource, found: Tables) -> str:
    return f"'{data}'" if isinstance(data, str | os.PathLike) else opening(found.name)


def check_owners(found: Tables, client_column: str | None) -> None:
    """A mapping's keys are its clients: no column is, and the test set is told apart by them too.

    Raises:
        ConfigError: something else is asked for.
    """
    owned = [table.owners is not None for table in (found.train, found.test) if table is not None]
    if client_column is not None and any(owned):
        raise ConfigError(
            f"client-column is '{client_column}', but the keys of the mapping are the clients: leave it out, or give one table."
        )
    if len(set(owned)) > 1:
        raise ConfigError(
            "The training set is a mapping from clients and the test set is not, or the other way round: give both as "
            "mappings, or neither."
        )


def _labelled_test(found: Tables, columns: Columns) -> tuple[AnyTable | None, tuple[str, ...]]:
    """The test table; if none of its rows has a label, as in benchmarks that keep them secret, the next that has some.

    None if there is no table with labels: then a share of the training set is held out.
    """
    candidates = [table for table in (found.test, *found.spare) if table is not None]
    for table in candidates:
        if columns.label not in table.names or any(label is not None for label in table.column(columns.label)):
            if table is candidates[0]:
                return table, ()
            return table, (f"{opening(candidates[0].source)} has no labels; {table.source} is the test set instead.",)
    if not candidates:
        return None, ()
    names = " and ".join(table.source for table in candidates)
    return None, (f"No labels in {names}: a share of the training set is held out for testing instead.",)


def load_examples(
    data: DataSource,
    label_names: Sequence[str],
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    client_column: str | None = None,
    usual_columns: tuple[str | None, str | None, str | None] = (None, None, None),
    strip_newsgroups: bool = True,
    training: bool = False,
) -> Examples:
    """The test set of `data`, or all of it if it has none, labelled with a model's own `label_names`.

    With `training` it is the training set.
    `usual_columns` (text, label, client) are taken if none is given and the data have them. Other arguments and errors are those of `load_data`; a label that is not in `label_names` is a DataError.
    """
    found = find_tables(data)
    table = found.train if training else found.test or found.train
    given = (text_column, label_column, client_column)
    text, label, client = (
        usual if chosen is None and usual in table.names else chosen
        for chosen, usual in zip(given, usual_columns, strict=True)
    )
    columns = find_columns(table.names, table.source, text, label, client)
    parts = _named([_rows(table, columns)], found.class_names)
    if is_newsgroups(label_names):
        parts = _stripped(parts) if strip_newsgroups and is_raw(parts[0].texts) else parts
    else:
        _check_texts(parts)
    return _numbered(parts[0], label_names)


def count_rows(data: str, *, text_column: str | None = None, label_column: str | None = None) -> int:
    """The number of training examples of `data`, once its columns are found and its texts and labels are readable.

    Raises:
        DataError: it cannot be read.
    """
    table = find_tables(data).train
    return len(_rows(table, find_columns(table.names, table.source, text_column, label_column, None)).texts)


def count_labels(data: str, *, text_column: str | None = None, label_column: str | None = None) -> dict[str, int]:
    """The number of training examples of each class of `data`, by the classes' names.

    Raises:
        DataError: it cannot be read.
    """
    found = find_tables(data)
    columns = find_columns(found.train.names, found.train.source, text_column, label_column, None)
    [rows] = _named([_rows(found.train, columns)], found.class_names)
    return dict(sorted(Counter(rows.labels).items()))


def _named(parts: Sequence[_Rows], class_names: Sequence[str]) -> list[_Rows]:
    """With names in place of class numbers, if the training labels are numbers 0..C-1 of `class_names`."""
    names = {str(number): name for number, name in enumerate(class_names)}
    if not set(parts[0].labels) <= names.keys():
        return list(parts)
    return [replace(part, labels=[names.get(label, label) for label in part.labels]) for part in parts]


def _rows(table: AnyTable, columns: Columns) -> _Rows:
    for name in (columns.text, columns.label, columns.client):
        if name is not None:
            require(name, table.names, table.source)
    return _Rows(
        table=table,
        texts=_texts(table, columns.text),
        labels=_keys(table, columns.label, "label"),
        clients=clients_of(table, columns.client),
    )


def _texts(table: AnyTable, column: str) -> list[str]:
    texts = table.column(column)
    for row, text in enumerate(texts, start=1):
        if text is None:
            raise DataError(f"{table.place(row)} has no text in column '{column}'; fill it or remove the row.")
        if not isinstance(text, str):
            raise DataError(
                f"{table.place(row)} holds a {type(text).__name__} in column '{column}', not a text; "
                "choose another column with --text-column, or quote the values."
            )
    return texts


def clients_of(table: AnyTable, column: str | None) -> list[str] | None:
    """Whose each row is, by the table itself or by a column.

    Raises:
        DataError: a row has no client.
    """
    if table.owners is not None:
        return table.owners
    return None if column is None else _keys(table, column, "client")


def _keys(table: AnyTable, column: str, role: str) -> list[str]:
    return [_key(value, row, table, column, role) for row, value in enumerate(table.column(column), start=1)]


def _key(value: object, row: int, table: AnyTable, column: str, role: str) -> str:
    """A label or a client as a string; 1.0, which a missing value elsewhere makes of an integer, as "1"."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    key = str(value).strip() if isinstance(value, str | int) else ""
    if key:
        return key
    if value is None or isinstance(value, str) or value != value:  # NaN is a missing value
        raise DataError(f"{table.place(row)} has no {role} in column '{column}'; fill it or remove the row.")
    raise DataError(
        f"{table.place(row)} holds {str(value)[:40]} in column '{column}': a {role} must be a name or a "
        f"whole number; choose another column with --{role}-column."
    )


def _label_names(train: _Rows) -> tuple[str, ...]:
    names = set(train.labels)
    if not names:
        raise DataError(f"{opening(train.table.source)} has no rows to train on; give a table with some.")
    if len(names) < 2:
        raise DataError(
            f"All examples of {train.table.source} have the label '{next(iter(names), '')}': classification needs at least "
            "two classes; check --label-column."
        )
    numeric = all(re.fullmatch(r"-?\d+", name) for name in names)
    return tuple(sorted(names, key=lambda name: (int(name) if numeric else 0, name)))


def _check_texts(parts: Sequence[_Rows]) -> None:
    for part in parts:
        for row, text in enumerate(part.texts, start=1):
            if not text.strip():
                raise DataError(f"{part.table.place(row)} has an empty text; fill it or remove the row.")


def _stripped(parts: Sequence[_Rows]) -> list[_Rows]:
    return [replace(part, texts=[strip_article(text) for text in part.texts]) for part in parts]


def _numbered(rows: _Rows, label_names: Sequence[str]) -> Examples:
    numbers = {name: number for number, name in enumerate(label_names)}
    unknown = sorted(set(rows.labels) - numbers.keys())
    if unknown:
        place = rows.table.place(rows.labels.index(unknown[0]) + 1)
        raise DataError(
            f"{opening(rows.table.source)} has {len(unknown)} labels that are not among the {len(label_names)} known ones, such as '{unknown[0]}' in "
            f"{place[0].lower() + place[1:]}; add training examples or remove these rows."
        )
    labels: IntArray = np.asarray([numbers[label] for label in rows.labels], np.int64)
    return Examples(tuple(rows.texts), labels, None if rows.clients is None else tuple(rows.clients))
