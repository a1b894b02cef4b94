"""Tables read from files (CSV, TSV, JSON, Parquet, Excel, plain or gzipped) and, with the `datasets` library, from the hub."""

from __future__ import annotations

import gzip
import logging
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from lora_a2.data.columns import require
from lora_a2.data.excel import read_excel
from lora_a2.data.file_options import USUAL, FileOptions, separator_of
from lora_a2.data.records import read_records
from lora_a2.data.text_files import find_separator, in_utf8
from lora_a2.errors import DataError, LoraA2Error

# `datasets` and pandas take most of a second to import: every function imports what it needs, when it needs it.

SEPARATED: Mapping[str, str] = {".csv": ",", ".tsv": "\t"}
"""Endings of files with values between separators → the usual one."""
TEXTUAL = (*SEPARATED, ".jsonl", ".json")
"""Endings of text files, which have an encoding."""
FORMATS = (*TEXTUAL, ".parquet", ".xlsx")
"""Endings of the files that can be read; each may be followed by .gz."""

MOST_UNPACKED, LARGEST_RATIO = 1 << 28, 100
"""A packed file may unpack to this many bytes, or to this many times its own size."""

ENDINGS = ", ".join(FORMATS) + " (plain or .gz)"


@dataclass(frozen=True)
class Table:
    """A table in memory.

    Attributes:
        source: where it came from, for error messages.
        dataset: what holds the columns.
        ending: that of the file which it was read from, "" if from none.
        notes: what the user should know of how it was read.
    """

    source: str
    dataset: Any
    ending: str = ""
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Column names, in order."""
        return tuple(self.dataset.column_names)

    def column(self, name: str) -> list[Any]:
        """The values of a column; a class number of a `ClassLabel` column is given as the class's name.

        A missing value, or a class number that has no name (such as -1 for "not labelled"), is None.
        """
        values = list(self.dataset[name][:])  # row by row a column of `datasets` takes 70 times as long
        labels = getattr(self.dataset.features[name], "names", None)
        if labels is None:
            return values
        return [labels[v] if isinstance(v, int) and 0 <= v < len(labels) else None for v in values]

    @property
    def owners(self) -> list[str] | None:
        """Whose each row is, where the table itself knows: it does not."""
        return None

    def place(self, row: int) -> str:
        """Where the row of this number, from 1, is."""
        return f"Row {row} of {self.source}"

    def __len__(self) -> int:
        return len(self.dataset)


@dataclass(frozen=True)
class ClientTables:
    """Tables of several clients, by name, end to end; used as a `Table` is."""

    source: str
    parts: Mapping[str, Table]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the first client's columns; the others need those that are used."""
        return next(iter(self.parts.values())).names

    def column(self, name: str) -> list[Any]:
        """The values of all clients, one after the other.

        Raises:
            DataError: a client has no such column.
        """
        for part in self.parts.values():
            require(name, part.names, part.source)
        return [value for part in self.parts.values() for value in part.column(name)]

    @property
    def owners(self) -> list[str] | None:
        """The client's name for each row."""
        return [client for client, part in self.parts.items() for _ in range(len(part))]

    def place(self, row: int) -> str:
        """Where the row of this number, from 1, is: its number in its client's own table."""
        for part in self.parts.values():
            if row <= len(part):
                return part.place(row)
            row -= len(part)
        raise IndexError(row)

    def __len__(self) -> int:
        return sum(map(len, self.parts.values()))


@dataclass(frozen=True)
class ChosenRows:
    """Some rows of a table, used as it is; `rows` count from 0. In messages they keep their numbers in the whole table."""

    table: Table | ClientTables
    rows: tuple[int, ...]

    @property
    def source(self) -> str:
        """Where the table came from."""
        return self.table.source

    @property
    def names(self) -> tuple[str, ...]:
        """Column names, in order."""
        return self.table.names

    def column(self, name: str) -> list[Any]:
        """The values of these rows."""
        values = self.table.column(name)
        return [values[row] for row in self.rows]

    @property
    def owners(self) -> list[str] | None:
        """Whose each row is, where the table itself knows."""
        owners = self.table.owners
        return None if owners is None else [owners[row] for row in self.rows]

    def place(self, row: int) -> str:
        """Where the row of this number, from 1 among the chosen ones, is."""
        return self.table.place(self.rows[row - 1] + 1)

    def __len__(self) -> int:
        return len(self.rows)


AnyTable = Table | ClientTables | ChosenRows


def chosen(table: AnyTable, rows: Sequence[int]) -> ChosenRows:
    """The rows of a table at `rows`, from 0."""
    if isinstance(table, ChosenRows):
        return ChosenRows(table.table, tuple(table.rows[row] for row in rows))
    return ChosenRows(table, tuple(rows))


def split_ending(path: Path) -> tuple[str, str]:
    """(stem, ending) such as ("train", ".csv") for train.csv.gz; the ending is "" where no reader knows it."""
    name = path.name[:-3] if path.name.lower().endswith(".gz") else path.name
    stem, dot, ending = name.rpartition(".")
    ending = (dot + ending).lower()
    return (stem, ending) if ending in FORMATS else (name, "")


def read_table(path: Path, source: str | None = None, file: FileOptions = USUAL) -> Table:
    """The table in a file. CSV and TSV values are strings as written: "007", "NA" and "null" stay what they are.

    Nothing is cached: a file that has changed is read anew.

    Raises:
        DataError: no such file, an unknown ending, or contents that do not parse.
    """
    source = source or f"'{path}'"
    ending = split_ending(path)[1]
    if not ending:
        raise DataError(f"{source} is not a file that can be read; give one that ends in {ENDINGS}.")
    if not path.is_file():
        raise DataError(f"There is no file {source}; check the path.")
    with tempfile.TemporaryDirectory(prefix="lora-a2-") as folder:
        try:
            plain = _staged(path, Path(folder), ending)
            if ending in TEXTUAL:
                plain = in_utf8(plain, file.encoding)
            return _read(plain, source, ending, file.separator)
        except LoraA2Error:
            raise
        except Exception as error:  # whatever a reader stumbles over, it is about the file
            raise DataError(f"{source} cannot be read as {ending[1:].upper()}: {reason(error)}.") from error


def _read(path: Path, source: str, ending: str, separator: str | None) -> Table:
    """The table in an unpacked file, in UTF-8 if it is text."""
    if ending in SEPARATED:
        usual = SEPARATED[ending]
        chosen = find_separator(path, usual) if separator is None else separator_of(separator)
        return Table(source, _load_file("csv", path, _csv_options(path, chosen)), ending)
    if ending in TEXTUAL:
        return Table(source, read_records(path), ending)
    if ending == ".xlsx":
        found, sheets = read_excel(path, max(MOST_UNPACKED, LARGEST_RATIO * path.stat().st_size))
        more = (f"{source} has {len(sheets)} sheets; the first, '{sheets[0]}', is read.",) if len(sheets) > 1 else ()
        return Table(source, found, ending, more)
    return Table(source, _load_file("parquet", path, {}), ending)


def read_hub(repo: str, config: str | None = None, revision: str | None = None) -> dict[str, Table]:
    """Split name → table of a data set on the Hugging Face hub, or of its copy in the hub's own cache when offline.

    Raises:
        DataError: the hub cannot be reached, or has no such data set that `datasets` can load.
    """
    import datasets

    name = f"{repo}:{config}" if config else repo
    with quiet(), _offline_unless_reachable(repo):
        try:
            splits = datasets.load_dataset(repo, config, revision=revision)
        except Exception as error:  # dozens of types over the versions, all of them: no data
            raise DataError(
                f"The data set '{name}' cannot be loaded from the Hugging Face hub ({reason(error)}); check the "
                f"name (owner/name or owner/name:config) and the connection, or give the path of a local file or "
                f"folder with --data."
            ) from error
    return {split: Table(f"'{name}' ({split} split)", table) for split, table in splits.items()}


def reason(error: BaseException) -> str:
    """The first line of what `error` says, without a final full stop; of its cause where it only says "an error"."""
    import datasets

    while isinstance(error, datasets.exceptions.DatasetGenerationError) and error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(". ")[:200] if lines else type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """Neither progress bars nor log lines of `datasets` and the hub client: errors come as exceptions."""
    import datasets

    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    bars = not datasets.are_progress_bars_disabled()
    if bars:
        datasets.disable_progress_bars()
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            datasets.enable_progress_bars()


def _staged(path: Path, folder: Path, ending: str) -> Path:
    """The file, unpacked, under a name that `datasets` cannot mistake for a glob pattern or a hidden file."""
    target = folder / f"table{ending}"
    if path.name.lower().endswith(".gz"):
        try:
            with gzip.open(path) as packed, target.open("wb") as unpacked:
                _copy(packed, unpacked, max(MOST_UNPACKED, LARGEST_RATIO * path.stat().st_size))
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError("it is not a complete gzip file") from error
    else:
        try:
            os.symlink(path.resolve(), target)
        except OSError:  # no right to make links, as on Windows
            shutil.copyfile(path, target)
    if target.stat().st_size == 0:
        raise ValueError("the file is empty")
    return target


def _copy(packed: gzip.GzipFile, unpacked: IO[bytes], most: int) -> None:
    """Unpacks up to `most` bytes.

    Raises:
        ValueError: there are more.
    """
    size = 0
    while piece := packed.read(1 << 20):
        size += len(piece)
        if size > most:
            raise ValueError(
                f"it unpacks to more than {most} bytes, out of all proportion to its size; if that is right, unpack it yourself"
            )
        unpacked.write(piece)


def _csv_options(path: Path, separator: str) -> dict[str, Any]:
    """Reader options under which every value stays the string that was written.

    Raises:
        ValueError: a column name occurs twice, there is no data row, or the first one does not fit the header.
    """
    import datasets
    import pandas as pd

    literal: dict[str, Any] = {"sep": separator, "keep_default_na": False, "na_filter": False, "encoding": "utf-8"}
    # The header is read as data: pandas takes the first column for an index where rows have one value too many.
    head = pd.read_csv(path, header=None, nrows=2, dtype=str, **literal).to_numpy().tolist()
    names = [name or f"column {number}" for number, name in enumerate(head[0], start=1)]
    if len(set(names)) < len(names):
        raise ValueError(f"a column name occurs twice in the header {names}")
    if len(head) < 2:
        raise ValueError("there is no row below the header")
    features = datasets.Features({name: datasets.Value("string") for name in names})
    return {"features": features, "column_names": names, "header": 0, **literal}


def _load_file(builder: str, path: Path, options: Mapping[str, Any]) -> Any:
    import datasets

    with quiet():
        return datasets.load_dataset(
            builder,
            data_files={"train": str(path)},
            split="train",
            cache_dir=str(path.parent / "cache"),
            keep_in_memory=True,  # the cache is gone when the caller reads the rows
            **options,
        )


@contextmanager
def _offline_unless_reachable(repo: str) -> Iterator[None]:
    """Asks the hub once; if it cannot be reached, `datasets` goes straight to its cache.

    Left alone it repeats every request for 23 seconds first.
    """
    import datasets
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    before = datasets.config.HF_HUB_OFFLINE
    if not before:
        try:
            HfApi().dataset_info(repo, timeout=10)
        except HfHubHTTPError:
            pass  # it answered: what is wrong, `load_dataset` will say
        except Exception:  # whatever the transport raises
            datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before
