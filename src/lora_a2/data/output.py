"""A table with columns added to its own, as a file in the format that the file's name says."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import Any

from lora_a2.data.columns import listed
from lora_a2.data.tables import AnyTable
from lora_a2.errors import ConfigError, DataError
from lora_a2.system.files import write_atomic

Columns = Mapping[str, Sequence[Any]]
"""Name → the values of a column, all of one length."""


def require_writable(path: Path) -> None:
    """Refuses a file whose name says no format that can be written, or that has no folder.

    Raises:
        ConfigError: it is so.
    """
    if path.suffix.lower() not in WRITERS:
        raise ConfigError(f"output: '{path}' says no format; give a name that ends in {', '.join(WRITERS)}.")
    if path.is_dir() or not path.absolute().parent.is_dir():
        what = "is a folder" if path.is_dir() else "lies in a folder that does not exist"
        raise ConfigError(f"output: '{path}' {what}; give the name of a file in a folder that is there.")


def free_names(table: AnyTable, *choices: Sequence[str]) -> Sequence[str]:
    """The first of these groups of names of which the table has none.

    Raises:
        DataError: it has a name of each.
    """
    for names in choices:
        if not set(names) & set(table.names):
            return names
    taken = [name for names in choices for name in names if name in table.names]
    raise DataError(f"The columns {listed(taken)} of {table.source} would be written over; rename them.")


def write_table(path: Path, table: AnyTable, added: Columns) -> None:
    """Writes the table's own columns, in their order, and the added ones behind them; a file that is there is replaced.

    Raises:
        DataError: the format cannot hold what is in the table.
        OSError: the file cannot be written; what was there remains.
    """
    columns: dict[str, Sequence[Any]] = {name: table.column(name) for name in table.names}
    try:
        data = WRITERS[path.suffix.lower()]({**columns, **added})
    except (TypeError, ValueError, OverflowError, NotImplementedError) as error:  # those of pyarrow are among them
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise DataError(
            f"{table.source} cannot be written as '{path}': {reason}; choose another of {', '.join(WRITERS)}."
        ) from error
    write_atomic(path, data)


def _separated(separator: str) -> Callable[[Columns], bytes]:
    def write(columns: Columns) -> bytes:
        text = io.StringIO(newline="")
        rows = csv.writer(text, delimiter=separator, lineterminator="\n")
        rows.writerow(columns)
        for row in zip(*columns.values(), strict=True):
            rows.writerow([_cell(name, value) for name, value in zip(columns, row, strict=True)])
        return text.getvalue().encode()

    return write


def _cell(name: str, value: Any) -> Any:
    """A value that is one text, as it is; missing ones are empty."""
    if value is None or isinstance(value, str | bool | int | float | date | time | Decimal):
        return value
    raise ValueError(f"column '{name}' holds a {type(value).__name__}, which is no single value")


def _lines(columns: Columns) -> bytes:
    rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False, default=_plain) + "\n" for row in rows).encode()


def _plain(value: Any) -> str:
    if isinstance(value, date | time | Decimal):
        return str(value)
    raise ValueError(f"JSON has no {type(value).__name__}")


def _parquet(columns: Columns) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = io.BytesIO()
    pq.write_table(pa.table({name: list(values) for name, values in columns.items()}), data)
    return data.getvalue()


WRITERS: Mapping[str, Callable[[Columns], bytes]] = {
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".jsonl": _lines,
    ".parquet": _parquet,
}
"""Ending of a file's name → its content."""
