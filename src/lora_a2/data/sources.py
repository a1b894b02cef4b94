"""Labelled texts from wherever the user has them: checked, numbered, and divided into a training and a test set."""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Unpack

import numpy as np

from lora_a2.data.columns import Columns, find_columns, find_text_column, opening, require
from lora_a2.data.doubts import like_labels, numbers, shared, single_clients
from lora_a2.data.file_options import USUAL, FileOptions, OnMissing
from lora_a2.data.finding import BUILT_IN, Tables, find_tables, open_tables
from lora_a2.data.labelled import Examples, LabelledData
from lora_a2.data.missing import complete, counted, is_missing, places
from lora_a2.data.newsgroups import is_newsgroups, is_raw, strip_article
from lora_a2.data.objects import DataSource
from lora_a2.data.options import DEFAULT_TEST_FRACTION, DataKeywords, DataOptions
from lora_a2.data.partition import IntArray
from lora_a2.data.subsets import divided
from lora_a2.data.tables import AnyTable, chosen
from lora_a2.errors import ConfigError, DataError, LoraA2Warning

__all__ = ["BUILT_IN", "DEFAULT_TEST_FRACTION", "Examples", "LabelledData", "load_data"]


@dataclass(frozen=True)
class _Rows:
    """Checked but not yet numbered: labels and clients as strings; `notes` on rows that were left out."""

    table: AnyTable
    texts: list[str]
    labels: list[str]
    clients: list[str] | None
    notes: tuple[str, ...] = ()

    def take(self, rows: Sequence[int]) -> _Rows:
        """The rows at `rows`, from 0."""
        return replace(
            self,
            table=chosen(self.table, rows),
            texts=[self.texts[row] for row in rows],
            labels=[self.labels[row] for row in rows],
            clients=None if self.clients is None else [self.clients[row] for row in rows],
        )


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
    found = open_tables(data, o)
    columns = find_columns(found.train.names, found.train.source, o.text_column, o.label_column, o.client_column)
    test_table, notes = _labelled_test(found, columns)
    if test_table is not None and o.test_fraction is not None:
        raise ConfigError(
            f"{_quoted(data, found)} has its own test set, so test-fraction {o.test_fraction} has nothing to hold out; leave "
            "it out, or give the training set alone."
        )
    tables = [table for table in (found.train, test_table) if table is not None]
    parts = _read(tables, columns, found.class_names, o)
    label_names = _label_names(parts[0]) if o.label_names is None else tuple(o.label_names)
    parts = [parts[0], *(_known(part, label_names, o.on_missing) for part in parts[1:])]
    doubts = _doubts(parts[0], columns)
    train = _numbered(parts[0], label_names)
    test = _numbered(parts[1], label_names) if len(parts) > 1 else None
    train, test = divided(train, test, o)
    notes = (*found.notes, *notes, *(note for part in parts for note in part.notes), *doubts)
    notes += tuple(shared(_bare(train), [text for text in _bare(test) if text]))
    return LabelledData(found.name, train, test, label_names, notes, columns.named())


def _doubts(train: _Rows, columns: Columns) -> list[str]:
    """What may be wrong with the training rows."""
    return [
        *numbers(train.texts, columns.text),
        *like_labels(train.labels),
        *single_clients(train.clients, columns.client),
    ]


def _bare(part: Examples) -> list[str]:
    return [text.strip() for text in part.texts]


def _quoted(data: DataSource, found: Tables) -> str:
    return f"'{data}'" if isinstance(data, str | os.PathLike) else opening(found.name)


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


def warn(text: str) -> None:
    """What is to be told as a Python warning, for who has no better place."""
    warnings.warn(text, LoraA2Warning, stacklevel=3)


def load_examples(
    data: DataSource,
    known: Sequence[str],
    options: DataOptions | None = None,
    *,
    usual_columns: tuple[str | None, str | None, str | None] = (None, None, None),
    training: bool = False,
    say: Callable[[str], None] = warn,
    **given: Unpack[DataKeywords],
) -> Examples:
    """The test set of `data`, or all of it if it has none, labelled with a model's own label names, the `known` ones.

    With `training` it is the training set.
    `usual_columns` (text, label, client) are taken if none is given and the data have them. Other arguments and errors are those of
    `load_data`; another label is a DataError. `say` is told of rows that are left out.
    """
    o = replace(replace(options or DataOptions(), **given), label_names=known)
    found = find_tables(data, o)
    table = found.train if training else found.test or found.train
    chosen_columns = (o.text_column, o.label_column, o.client_column)
    text, label, client = (
        usual if own is None and usual in table.names else own
        for own, usual in zip(chosen_columns, usual_columns, strict=True)
    )
    columns = find_columns(table.names, table.source, text, label, client)
    [part] = _read([table], columns, found.class_names, o)
    if not training:
        part = _known(part, known, o.on_missing)
    for note in (*found.notes, *part.notes):
        say(note)
    return _numbered(part, known)


def load_texts(
    data: DataSource,
    label_names: Sequence[str],
    *,
    text_column: str | None = None,
    usual_column: str | None = None,
    strip_newsgroups: bool = True,
    file: FileOptions = USUAL,
) -> tuple[AnyTable, list[str]]:
    """A table to be labelled with `label_names`, and its texts: the test set of `data`, or all of it if it has none.

    `usual_column` is taken if none is given and the table has it. Texts are treated as those of `load_examples`. Rows without one
    that are left out are told as a warning.

    Raises:
        DataError: the data cannot be found or read, or a row has no text.
    """
    found = find_tables(data, file)
    table = found.test or found.train
    if text_column is None and usual_column in table.names:
        text_column = usual_column
    column = find_text_column(table.names, table.source, text_column)
    if is_newsgroups(label_names):
        rows = _Rows(table, _texts(table, column), [], None)
        (rows,) = _stripped([rows]) if strip_newsgroups and is_raw(rows.texts) else [rows]
        return table, rows.texts
    table, notes = complete(table, {"text": column}, file.on_missing)
    for note in (*found.notes, *notes):
        warn(note)
    return table, _texts(table, column)


def count_rows(data: str, options: DataOptions | None = None, **given: Unpack[DataKeywords]) -> int:
    """The number of training examples of `data`, once its columns are found and its texts and labels are readable.

    Raises:
        DataError: it cannot be read.
    """
    return len(_training_rows(data, replace(options or DataOptions(), **given)).texts)


def count_labels(data: str, options: DataOptions | None = None, **given: Unpack[DataKeywords]) -> dict[str, int]:
    """The number of training examples of each class of `data`, by the classes' names.

    Raises:
        DataError: it cannot be read.
    """
    return dict(sorted(Counter(_training_rows(data, replace(options or DataOptions(), **given)).labels).items()))


def _training_rows(data: str, options: DataOptions) -> _Rows:
    found = find_tables(data, options)
    columns = find_columns(found.train.names, found.train.source, options.text_column, options.label_column, None)
    [rows] = _read([found.train], columns, found.class_names, options)
    return rows


def _read(
    tables: Sequence[AnyTable], columns: Columns, class_names: Sequence[str], options: DataOptions
) -> list[_Rows]:
    """The complete rows of each table; articles of 20 Newsgroups are stripped, and may be empty.

    Those count in the published sizes; elsewhere a row without a text is a mistake.
    """
    articles = _are_articles(tables[0], columns, class_names, options)
    parts = _named([_rows(table, columns, options.on_missing, articles) for table in tables], class_names)
    if articles and options.strip_newsgroups and is_raw(parts[0].texts):
        return _stripped(parts)
    return parts


def _are_articles(table: AnyTable, columns: Columns, class_names: Sequence[str], options: DataOptions) -> bool:
    """Whether the labels are those of 20 Newsgroups."""
    if options.label_names is not None:
        return is_newsgroups(options.label_names)
    require(columns.label, table.names, table.source)
    labels = {str(label).strip() for label in table.column(columns.label) if not is_missing(label)}
    return is_newsgroups(labels) or is_newsgroups(class_names)


def _named(parts: Sequence[_Rows], class_names: Sequence[str]) -> list[_Rows]:
    """With names in place of class numbers, if the training labels are numbers 0..C-1 of `class_names`."""
    names = {str(number): name for number, name in enumerate(class_names)}
    if not set(parts[0].labels) <= names.keys():
        return list(parts)
    return [replace(part, labels=[names.get(label, label) for label in part.labels]) for part in parts]


def _rows(table: AnyTable, columns: Columns, on_missing: OnMissing, may_be_empty: bool) -> _Rows:
    needed = {role: name for role, name in columns.named().items() if role != "text" or not may_be_empty}
    require(columns.text, table.names, table.source)
    table, notes = complete(table, needed, on_missing)
    return _Rows(
        table=table,
        texts=_texts(table, columns.text),
        labels=_keys(table, columns.label, "label"),
        clients=clients_of(table, columns.client),
        notes=notes,
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
    if isinstance(value, str | int):
        return str(value).strip()
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


def _stripped(parts: Sequence[_Rows]) -> list[_Rows]:
    return [replace(part, texts=[strip_article(text) for text in part.texts]) for part in parts]


def _known(rows: _Rows, label_names: Sequence[str], on_missing: OnMissing) -> _Rows:
    """The rows of a test set whose label training has.

    Raises:
        DataError: others are an error, and there are some, or no row is left.
    """
    known = set(label_names)
    left = [row for row, label in enumerate(rows.labels) if label in known]
    if len(left) == len(rows.labels):
        return rows
    if on_missing == "error":
        raise DataError(
            f"{_unknown(rows, label_names)}; add training examples, remove these rows, or leave them out with --on-missing drop."
        )
    if not left:
        raise DataError(f"{_unknown(rows, label_names)}, and no row is left; check --label-column.")
    return replace(rows.take(left), notes=(*rows.notes, f"Left out: {_unknown(rows, label_names, 'with')}."))


def _unknown(rows: _Rows, label_names: Sequence[str], verb: str = "") -> str:
    """How many rows have labels that are not known, which labels, and where."""
    known = set(label_names)
    wrong = [row for row, label in enumerate(rows.labels) if label not in known]
    labels = sorted({rows.labels[row] for row in wrong})
    shown = ", ".join(f"'{label}'" for label in labels[:3]) + (
        f" and {len(labels) - 3} more" if len(labels) > 3 else ""
    )
    what, have = ("a label that is", "has") if len(wrong) == 1 else ("labels that are", "have")
    return (
        f"{counted(rows.table, wrong)} {verb or have} {what} not among the {len(label_names)} known ones: {shown} "
        f"({places(rows.table, wrong)})"
    )


def _numbered(rows: _Rows, label_names: Sequence[str]) -> Examples:
    number_of = {name: number for number, name in enumerate(label_names)}
    if not set(rows.labels) <= number_of.keys():
        raise DataError(f"{_unknown(rows, label_names)}; correct them or remove these rows.")
    labels: IntArray = np.asarray([number_of[label] for label in rows.labels], np.int64)
    return Examples(tuple(rows.texts), labels, None if rows.clients is None else tuple(rows.clients))
