"""Labelled texts from wherever the user has them: a file, a folder, the Hugging Face hub, or this package."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np

from lora_a2.core.randomness import generator
from lora_a2.data import subsets
from lora_a2.data.columns import Columns, find_columns, require
from lora_a2.data.labelled import Examples, LabelledData
from lora_a2.data.newsgroups import is_newsgroups, is_raw, strip_article
from lora_a2.data.partition import IntArray
from lora_a2.data.tables import ENDINGS, Table, read_hub, read_table, split_ending
from lora_a2.errors import ConfigError, DataError

__all__ = ["BUILT_IN", "DEFAULT_TEST_FRACTION", "Examples", "LabelledData", "load_data"]

DEFAULT_TEST_FRACTION = 0.2
_HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::(?P<config>[\w.-]+))?")
_TEST_SPLITS = ("test", "validation", "dev")


@dataclass(frozen=True)
class _Tables:
    """A data set as it was found: its name, its test table and the names of its class numbers if it brings them.

    `spare` are tables that could take the place of the test table.
    """

    name: str
    train: Table
    test: Table | None
    class_names: tuple[str, ...] = ()
    spare: tuple[Table, ...] = ()


@dataclass(frozen=True)
class _Rows:
    """Checked but not yet numbered: labels and clients as strings."""

    source: str
    texts: list[str]
    labels: list[str]
    clients: list[str] | None


def load_data(
    data: str = "helpdesk",
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    client_column: str | None = None,
    test_data: str | None = None,
    test_fraction: float | None = None,
    validation_fraction: float | None = None,
    max_examples: int | None = None,
    max_test_examples: int | None = None,
    seed: int = 0,
    strip_newsgroups: bool = True,
    label_names: Sequence[str] | None = None,
    hold_out: float = DEFAULT_TEST_FRACTION,
) -> LabelledData:
    """Reads a labelled data set with a training and a test set. Labels are numbered in the order of their names.

    Args:
        data: a name of `BUILT_IN`; a file; a folder with a train file and, possibly, a test file and a labels.json
            (a list that names the class numbers); or the id of a data set on the Hugging Face hub, owner/name or
            owner/name:config. A built-in name comes before a folder of that name; write ./name for the folder.
        text_column, label_column: found by the usual names where None.
        client_column: whose example each is; None: nobody's.
        test_data: a file that takes the place of the test set that the data bring, if any.
        test_fraction: share of the training set to hold out where there is no test set; it is wrong to give one where
            there is. None stands for `hold_out`.
        validation_fraction: share of the training set to hold out and to take in place of the test set, for tuning.
        max_examples: size of a stratified subset of the training set: as equal a number from each class as there is.
        max_test_examples: likewise of the test set.
        seed: decides which examples are held out and which make the subsets.
        strip_newsgroups: 20 Newsgroups, known by its labels: take headers, footers and quotes off raw articles.
        label_names: the classes, where they are agreed on beforehand; the data then need not have all of them.

    Raises:
        DataError: the data cannot be found, read, or used as a classification task.
        ConfigError: an option that is out of range or has nothing to act on.
    """
    _check_options(test_data, test_fraction, max_examples)
    found = _find(data)
    if test_data is not None:
        found = replace(found, test=read_table(Path(test_data).expanduser()))
    columns = find_columns(found.train.names, found.train.source, text_column, label_column, client_column)
    chosen, notes = _labelled_test(found, columns)
    if chosen is not None and test_fraction is not None:
        raise ConfigError(
            f"'{data}' has its own test set, so test-fraction {test_fraction} has nothing to hold out; leave it out, "
            "or give the training file alone."
        )
    parts = [_rows(table, columns) for table in (found.train, chosen) if table is not None]
    parts = _named(parts, found.class_names)
    label_names = _label_names(parts[0]) if label_names is None else tuple(label_names)
    if is_newsgroups(label_names):
        parts = _stripped(parts) if strip_newsgroups and is_raw(parts[0].texts) else parts
    else:  # stripped articles may be empty, and count in the published sizes; elsewhere an empty text is a mistake
        _check_texts(parts)
    train = _numbered(parts[0], label_names)
    test = _numbered(parts[1], label_names) if len(parts) > 1 else None
    if test is None:
        train, test = _held_out(train, test_fraction or hold_out, seed)
    if validation_fraction is not None:
        train, test = _held_out(train, validation_fraction, seed)
    if max_examples is not None:
        train = train.take(subsets.at_most(train.labels, max_examples, generator(seed, "max-examples")))
    if max_test_examples is not None:
        rng = generator(seed, "max-test-examples")
        test = test.take(subsets.at_most(test.labels, max_test_examples, rng, "max-test-examples"))
    return LabelledData(found.name, train, test, label_names, notes)


def _labelled_test(found: _Tables, columns: Columns) -> tuple[Table | None, tuple[str, ...]]:
    """The test table; where none of its rows has a label, as in benchmarks that keep them secret, the next that has some.

    None where there is no table with labels: then a share of the training set is held out.
    """
    candidates = [table for table in (found.test, *found.spare) if table is not None]
    for table in candidates:
        if columns.label not in table.names or any(label is not None for label in table.column(columns.label)):
            if table is candidates[0]:
                return table, ()
            return table, (f"{candidates[0].source} has no labels; {table.source} is the test set instead.",)
    if not candidates:
        return None, ()
    names = " and ".join(table.source for table in candidates)
    return None, (f"No labels in {names}: a share of the training set is held out for testing instead.",)


def load_examples(
    data: str,
    label_names: Sequence[str],
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    client_column: str | None = None,
    usual_columns: tuple[str | None, str | None, str | None] = (None, None, None),
    strip_newsgroups: bool = True,
    training: bool = False,
) -> Examples:
    """The test set of `data`, or all of it where it has none, labelled with a model's own `label_names`.

    With `training` it is the training set.
    `usual_columns` (text, label, client) are taken where none is given and the data have them. Other arguments and errors are those of `load_data`; a label that is not in `label_names` is a DataError.
    """
    found = _find(data)
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
    table = _find(data).train
    return len(_rows(table, find_columns(table.names, table.source, text_column, label_column, None)).texts)


def _check_options(test_data: str | None, test_fraction: float | None, max_examples: int | None) -> None:
    if test_fraction is not None and not 0 < test_fraction < 1:
        raise ConfigError(f"test-fraction is {test_fraction}: it must lie between 0 and 1, such as 0.2.")
    if test_fraction is not None and test_data is not None:
        raise ConfigError("test-data and test-fraction exclude each other; give one of them.")
    if max_examples is not None and max_examples < 1:
        raise ConfigError(f"max-examples is {max_examples}: it must be at least the number of classes.")


def _helpdesk() -> _Tables:
    folder = files("lora_a2.data") / "helpdesk"
    with ExitStack() as stack:  # `as_file`: the package may be imported from a zip file
        paths = [stack.enter_context(as_file(folder / f"{split}.csv")) for split in ("train", "test")]
        train, test = (read_table(path, f"helpdesk ({path.name})") for path in paths)
    return _Tables("helpdesk", train, test)


def _from_hub(name: str, repo: str, config: str | None = None, revision: str | None = None) -> _Tables:
    splits = read_hub(repo, config, revision)
    if "train" not in splits:
        raise DataError(f"The data set '{name}' has no train split, only {', '.join(splits)}; choose another.")
    tests = [splits[split] for split in _TEST_SPLITS if split in splits]
    return _Tables(name, splits["train"], tests[0] if tests else None, spare=tuple(tests[1:]))


BUILT_IN: Mapping[str, Callable[[], _Tables]] = {
    "helpdesk": _helpdesk,
    # The revision with the 10,003 / 3,080 examples that results are published on; its files are plain JSON Lines.
    "banking77": lambda: _from_hub("banking77", "mteb/banking77", revision="0fd18e25b25c072e09e0d92ab615fda904d66300"),
    # Headers, footers and quotes are off already in this copy.
    "20newsgroups": lambda: _from_hub("20newsgroups", "SetFit/20_newsgroups"),
}
"""Data sets known by name."""


def _find(data: str) -> _Tables:
    if data in BUILT_IN:
        return BUILT_IN[data]()
    path = Path(data).expanduser()
    if data and path.is_dir():
        return _from_folder(path)
    if path.is_file():
        return _Tables(split_ending(path)[0], read_table(path), None)
    hub_id = _HUB_ID.fullmatch(data)
    if hub_id is None or split_ending(path)[1]:
        near = difflib.get_close_matches(data, BUILT_IN, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise DataError(
            f"There is no data set '{data}': it is neither a file or folder, nor one of {', '.join(BUILT_IN)}, nor "
            f"a Hugging Face id (owner/name); check the spelling or the path.{hint}"
        )
    return _from_hub(data, hub_id["repo"], hub_id["config"])


def _from_folder(folder: Path) -> _Tables:
    tables = {stem: _only(folder, stem) for stem in ("train", "test")}
    if tables["train"] is None:
        raise DataError(
            f"The folder '{folder}' has no train file: it needs one named train, and may have one named test, that "
            f"ends in {ENDINGS}; rename the file, or give the path of the file itself."
        )
    test = None if tables["test"] is None else read_table(tables["test"])
    return _Tables(folder.resolve().name, read_table(tables["train"]), test, _class_names(folder / "labels.json"))


def _class_names(path: Path) -> tuple[str, ...]:
    """The names in a labels.json beside the data, where that is a list of names; anything else there is not ours."""
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ()
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()


def _named(parts: Sequence[_Rows], class_names: Sequence[str]) -> list[_Rows]:
    """With names in place of class numbers, if the training labels are numbers 0..C-1 of `class_names`."""
    names = {str(number): name for number, name in enumerate(class_names)}
    if not set(parts[0].labels) <= names.keys():
        return list(parts)
    return [replace(part, labels=[names.get(label, label) for label in part.labels]) for part in parts]


def _only(folder: Path, stem: str) -> Path | None:
    found = sorted(p for p in folder.iterdir() if p.is_file() and split_ending(p)[0] == stem and split_ending(p)[1])
    if len(found) > 1:
        raise DataError(
            f"The folder '{folder}' has several {stem} files: {', '.join(p.name for p in found)}; leave only one."
        )
    return found[0] if found else None


def _rows(table: Table, columns: Columns) -> _Rows:
    for name in (columns.text, columns.label, columns.client):
        if name is not None:
            require(name, table.names, table.source)
    return _Rows(
        source=table.source,
        texts=_texts(table, columns.text),
        labels=_keys(table, columns.label, "label"),
        clients=None if columns.client is None else _keys(table, columns.client, "client"),
    )


def _texts(table: Table, column: str) -> list[str]:
    texts = table.column(column)
    for row, text in enumerate(texts, start=1):
        if text is None:
            raise DataError(f"Row {row} of {table.source} has no text in column '{column}'; fill it or remove the row.")
        if not isinstance(text, str):
            raise DataError(
                f"Row {row} of {table.source} holds a {type(text).__name__} in column '{column}', not a text; "
                "choose another column with --text-column, or quote the values."
            )
    return texts


def _keys(table: Table, column: str, role: str) -> list[str]:
    return [_key(value, row, table, column, role) for row, value in enumerate(table.column(column), start=1)]


def _key(value: object, row: int, table: Table, column: str, role: str) -> str:
    """A label or a client as a string; 1.0, which a missing value elsewhere makes of an integer, as "1"."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    key = str(value).strip() if isinstance(value, str | int) else ""
    if key:
        return key
    if value is None or isinstance(value, str) or value != value:  # NaN is a missing value
        raise DataError(f"Row {row} of {table.source} has no {role} in column '{column}'; fill it or remove the row.")
    raise DataError(
        f"Row {row} of {table.source} holds {str(value)[:40]} in column '{column}': a {role} must be a name or a "
        f"whole number; choose another column with --{role}-column."
    )


def _label_names(train: _Rows) -> tuple[str, ...]:
    names = set(train.labels)
    if len(names) < 2:
        raise DataError(
            f"All examples of {train.source} have the label '{next(iter(names), '')}': classification needs at least "
            "two classes; check --label-column."
        )
    numeric = all(re.fullmatch(r"-?\d+", name) for name in names)
    return tuple(sorted(names, key=lambda name: (int(name) if numeric else 0, name)))


def _check_texts(parts: Sequence[_Rows]) -> None:
    for part in parts:
        for row, text in enumerate(part.texts, start=1):
            if not text.strip():
                raise DataError(f"Row {row} of {part.source} has an empty text; fill it or remove the row.")


def _stripped(parts: Sequence[_Rows]) -> list[_Rows]:
    return [replace(part, texts=[strip_article(text) for text in part.texts]) for part in parts]


def _numbered(rows: _Rows, label_names: Sequence[str]) -> Examples:
    numbers = {name: number for number, name in enumerate(label_names)}
    unknown = sorted(set(rows.labels) - numbers.keys())
    if unknown:
        raise DataError(
            f"{rows.source} has {len(unknown)} labels that are not among the {len(label_names)} known ones, such as '{unknown[0]}' in row "
            f"{rows.labels.index(unknown[0]) + 1}; add training examples or remove these rows."
        )
    labels: IntArray = np.asarray([numbers[label] for label in rows.labels], np.int64)
    return Examples(tuple(rows.texts), labels, None if rows.clients is None else tuple(rows.clients))


def _held_out(examples: Examples, fraction: float, seed: int) -> tuple[Examples, Examples]:
    train, test = subsets.hold_out(examples.labels, examples.clients, fraction, generator(seed, "hold-out"))
    if len(test) == 0:
        raise DataError(
            f"Holding out {fraction:g} of {len(examples)} examples leaves none for testing, as each class keeps one "
            "for training; give more data, or a test set with --test-data."
        )
    return examples.take(train), examples.take(test)
