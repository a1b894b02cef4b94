"""Rows that lack something: counted and named, or left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lora_a2.data.columns import require
from lora_a2.data.file_options import OnMissing
from lora_a2.data.messages import plain
from lora_a2.data.tables import AnyTable, chosen
from lora_a2.errors import DataError

_SHOWN = 3


def is_missing(value: object) -> bool:
    """Whether a value says nothing: none at all, NaN, a blank text, or a list that is empty or begins with one of these."""
    value = plain(value)
    if isinstance(value, list):
        return not value or is_missing(value[0])
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def complete(table: AnyTable, columns: Mapping[str, str], on_missing: OnMissing) -> tuple[AnyTable, tuple[str, ...]]:
    """The table without the rows that lack something, and what the user should know of these.

    Args:
        table: any.
        columns: what is needed, in a word → its column.
        on_missing: whether such rows are an error or are left out.

    Raises:
        DataError: a column is not there, such rows are an error, or no row is left.
    """
    found: dict[str, list[int]] = {}
    for role, name in columns.items():
        require(name, table.names, table.source)
        rows = [row for row, value in enumerate(table.column(name)) if is_missing(value)]
        if rows:
            found[role] = rows
    if not found:
        return table, ()
    if on_missing == "error":
        lines = [_lacking(table, rows, role, columns[role]) for role, rows in found.items()]
        alone = sum(map(len, found.values())) == 1
        advice = "fill it, remove the row, or leave it" if alone else "fill them, remove the rows, or leave them"
        raise DataError(f"{'; '.join(lines)}; {advice} out with --on-missing drop.")
    gone = {row for rows in found.values() for row in rows}
    left = [row for row in range(len(table)) if row not in gone]
    if not left:
        raise DataError(f"No row of {table.source} is left: each lacks its {' or '.join(found)}; check the columns.")
    notes = [
        f"Left out: {counted(table, rows)} without {'an' if role[0] in 'aeiou' else 'a'} {role} in column '{columns[role]}' ({places(table, rows)})."
        for role, rows in found.items()
    ]
    return chosen(table, left), tuple(notes)


def _lacking(table: AnyTable, rows: Sequence[int], role: str, column: str) -> str:
    if len(rows) == 1:
        return f"{table.place(rows[0] + 1)} has no {role} in column '{column}'"
    return f"{counted(table, rows)} have no {role} in column '{column}' ({places(table, rows)})"


def counted(table: AnyTable, rows: Sequence[int]) -> str:
    """How many of a table's rows these are."""
    return f"{len(rows):,} of {len(table):,} rows of {table.source}"


def places(table: AnyTable, rows: Sequence[int]) -> str:
    """Where rows, from 0, are: the first few by their numbers from 1."""
    found = [table.place(row + 1).removesuffix(f" of {table.source}") for row in rows[:_SHOWN]]
    more = f" and {len(rows) - _SHOWN:,} more" if len(rows) > _SHOWN else ""
    return ", ".join(place[0].lower() + place[1:] for place in found) + more
