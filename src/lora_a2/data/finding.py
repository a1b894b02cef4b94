"""Where a data set is: built in, a file, a folder, the Hugging Face hub, or Python's memory."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path

from lora_a2.core.names import known_name
from lora_a2.data.columns import opening
from lora_a2.data.file_options import USUAL, FileOptions
from lora_a2.data.objects import EXPECTED, DataSource, splits_of
from lora_a2.data.options import ReadingOptions
from lora_a2.data.tables import (
    ENDINGS,
    SEPARATED,
    TEXTUAL,
    AnyTable,
    ClientTables,
    Table,
    read_hub,
    read_table,
    split_ending,
)
from lora_a2.errors import ConfigError, DataError

_HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::(?P<config>[\w.-]+))?")
_TEST_SPLITS = ("test", "validation", "dev")


@dataclass(frozen=True)
class Tables:
    """A data set as it was found: its name, its test table and the names of its class numbers if it brings them.

    `spare` are tables that could take the place of the test table.
    """

    name: str
    train: AnyTable
    test: AnyTable | None
    class_names: tuple[str, ...] = ()
    spare: tuple[AnyTable, ...] = ()

    @property
    def tables(self) -> tuple[AnyTable, ...]:
        """The training and the test table."""
        return (self.train,) if self.test is None else (self.train, self.test)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of how they were read."""
        return tuple(note for table in self.tables if isinstance(table, Table) for note in table.notes)


def find_tables(data: DataSource, file: FileOptions = USUAL) -> Tables:
    """The tables of `data`, which is what `load_data` takes.

    Raises:
        DataError: there is no such data set, it cannot be read, or it is nothing that holds rows.
        ConfigError: there is no file that `file` could say something of.
    """
    found = _found(data, file)
    _check_acts(found, file)
    return found


def open_tables(data: DataSource, options: ReadingOptions) -> Tables:
    """The tables of `data`, with what is given apart to test with.

    Raises:
        DataError: they cannot be found or read.
        ConfigError: an option has nothing to act on.
    """
    found = _found(data, options)
    if options.test_data is not None:
        found = replace(found, test=find_test_table(options.test_data, options))
    _check_acts(found, options)
    _check_owners(found, options.client_column)
    return found


def _found(data: DataSource, file: FileOptions) -> Tables:
    if isinstance(data, os.PathLike):
        return _named(str(Path(data).expanduser().absolute()), file)  # a path is never a name
    return _named(data, file) if isinstance(data, str) else _from_object(data)


def _check_acts(found: Tables, file: FileOptions) -> None:
    """Refuses options of files where no table is from such a file.

    Raises:
        ConfigError: one is given.
    """
    there = {table.ending for table in found.tables if isinstance(table, Table)}
    for name, value, endings in (
        ("separator", file.separator, SEPARATED),
        ("encoding", file.encoding, TEXTUAL),
    ):
        if value is not None and not there & set(endings):
            raise ConfigError(
                f"{name}: it is for files that end in {', '.join(endings)}, and {found.name} has none; leave it out."
            )


def _check_owners(found: Tables, client_column: str | None) -> None:
    """A mapping's keys are its clients: no column is, and the test set is told apart by them too.

    Raises:
        ConfigError: something else is asked for.
    """
    owned = [table.owners is not None for table in found.tables]
    if client_column is not None and any(owned):
        raise ConfigError(
            f"client-column is '{client_column}', but the keys of the mapping are the clients: leave it out, or give one table."
        )
    if len(set(owned)) > 1:
        raise ConfigError(
            "The training set is a mapping from clients and the test set is not, or the other way round: give both as "
            "mappings, or neither."
        )


def find_test_table(data: DataSource, file: FileOptions = USUAL) -> AnyTable:
    """What is given apart to test with: a file, or one table in memory.

    Raises:
        DataError: it cannot be read, or is more than one table.
    """
    if isinstance(data, str | os.PathLike):
        return read_table(Path(data).expanduser(), file=file)
    found = _from_object(data)
    if found.test is not None:
        raise DataError(f"test-data is {found.name}, which has several splits: give one of them.")
    return found.train


def _shipped(name: str, ending: str) -> Tables:
    """A data set that lies in this package."""
    folder = files("lora_a2.data") / name
    with ExitStack() as stack:  # `as_file`: the package may be imported from a zip file
        paths = [stack.enter_context(as_file(folder / f"{split}{ending}")) for split in ("train", "test")]
        train, test = (read_table(path, f"{name} ({path.name})") for path in paths)
    return Tables(name, train, test)


def _from_hub(name: str, repo: str, config: str | None = None, revision: str | None = None) -> Tables:
    return _from_splits(name, f"the data set '{name}'", read_hub(repo, config, revision))


def _from_splits(name: str, source: str, splits: Mapping[str, Table]) -> Tables:
    if "train" not in splits:
        raise DataError(f"{opening(source)} has no train split, only {', '.join(splits)}; choose another.")
    tests = [splits[split] for split in _TEST_SPLITS if split in splits]
    return Tables(name, splits["train"], tests[0] if tests else None, spare=tuple(tests[1:]))


def _from_object(data: object, owner: str = "") -> Tables:
    splits = splits_of(data, owner)
    if splits is not None:
        name = f"the {type(data).__name__}{owner}"
        return _from_splits(name, name, splits)
    if isinstance(data, Mapping) and not owner:
        return _from_clients(data)
    raise DataError(
        f"The data{owner} are a {type(data).__name__}: give "
        + (f"{EXPECTED}." if owner else f"a name, a path, {EXPECTED}, or a mapping from clients' names to such.")
    )


def _from_clients(data: Mapping[object, object]) -> Tables:
    """The clients' tables end to end; their n-th test tables are one, too."""
    for client in data:
        if not isinstance(client, str) or not client or client != client.strip():
            raise DataError(f"A client's name must be a text without blanks around it, not {client!r}; rename it.")
    if not data:
        raise DataError(f"The mapping has no client: give it {EXPECTED} for each.")
    if set(map(str, data)) <= {"train", *_TEST_SPLITS}:
        raise DataError(
            f"The keys of a mapping are clients, and those of this one look like splits ({', '.join(map(str, data))}): give "
            "datasets.DatasetDict(…), or the test set apart as test_data."
        )
    found = {str(client): _from_object(part, f" of client '{client}'") for client, part in data.items()}
    tests = {client: [t for t in (own.test, *own.spare) if t is not None] for client, own in found.items()}
    lacking = [client for client, own in tests.items() if not own]
    if lacking and len(lacking) < len(tests):
        raise DataError(
            f"Client '{lacking[0]}' has no test split, and others have one: give each a DatasetDict with one, or none."
        )
    joined = [
        _joined({c: own[n] for c, own in tests.items() if n < len(own)}) for n in range(max(map(len, tests.values())))
    ]
    train = _joined({client: own.train for client, own in found.items()})
    return Tables("the mapping", train, joined[0] if joined else None, spare=tuple(joined[1:]))


def _joined(parts: Mapping[str, AnyTable]) -> ClientTables:
    return ClientTables("the mapping", {name: part for name, part in parts.items() if isinstance(part, Table)})


BUILT_IN: Mapping[str, Callable[[], Tables]] = {
    "helpdesk": lambda: _shipped("helpdesk", ".csv"),
    "shopdesk": lambda: _shipped("shopdesk", ".jsonl"),
    # The revision with the 10,003 / 3,080 examples that results are published on; its files are plain JSON Lines.
    "banking77": lambda: _from_hub("banking77", "mteb/banking77", revision="0fd18e25b25c072e09e0d92ab615fda904d66300"),
    # Headers, footers and quotes are off already in this copy.
    "20newsgroups": lambda: _from_hub("20newsgroups", "SetFit/20_newsgroups"),
}
"""Data sets known by name."""


def _named(data: str, file: FileOptions) -> Tables:
    if data in BUILT_IN:
        return BUILT_IN[data]()
    path = Path(data).expanduser()
    if data and path.is_dir():
        return _from_folder(path, file)
    if path.is_file():
        return Tables(split_ending(path)[0], read_table(path, file=file), None)
    if (known := known_name(data, BUILT_IN)) in BUILT_IN:
        return BUILT_IN[known]()
    hub_id = _HUB_ID.fullmatch(data)
    if hub_id is None or split_ending(path)[1]:
        near = difflib.get_close_matches(data, BUILT_IN, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise DataError(
            f"There is no data set '{data}': it is neither a file or folder, nor one of {', '.join(BUILT_IN)}, nor "
            f"a Hugging Face id (owner/name); check the spelling or the path.{hint}"
        )
    return _from_hub(data, hub_id["repo"], hub_id["config"])


def _from_folder(folder: Path, file: FileOptions) -> Tables:
    tables = {stem: _only(folder, stem) for stem in ("train", "test")}
    if tables["train"] is None:
        raise DataError(
            f"The folder '{folder}' has no train file: it needs one named train, and may have one named test, that "
            f"ends in {ENDINGS}; rename the file, or give the path of the file itself."
        )
    test = None if tables["test"] is None else read_table(tables["test"], file=file)
    return Tables(
        folder.resolve().name, read_table(tables["train"], file=file), test, _class_names(folder / "labels.json")
    )


def _class_names(path: Path) -> tuple[str, ...]:
    """The names in a labels.json beside the data, where that is a list of names; anything else there is not ours."""
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ()
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()


def _only(folder: Path, stem: str) -> Path | None:
    found = sorted(p for p in folder.iterdir() if p.is_file() and split_ending(p)[0] == stem and split_ending(p)[1])
    if len(found) > 1:
        raise DataError(
            f"The folder '{folder}' has several {stem} files: {', '.join(p.name for p in found)}; leave only one."
        )
    return found[0] if found else None
