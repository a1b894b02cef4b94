"""What a page is made of. Texts are plain: whatever is in them, the template escapes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Cell = str | int | float | None
"""Numbers are right-aligned; None is a blank."""


@dataclass(frozen=True)
class Table:
    """Rows under a header, one cell for each column; the first column names the row. `note` stands below."""

    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.header) for row in self.rows), self.header


@dataclass(frozen=True)
class Figure:
    """A picture with the numbers behind it.

    Attributes:
        title: what is drawn.
        description: the picture in a sentence or two, for those who do not see it, and as its caption.
        spec: Vega-Lite.
        table: the same numbers.
    """

    title: str
    description: str
    spec: dict[str, Any]
    table: Table


@dataclass(frozen=True)
class Section:
    """A heading with what stands under it, in this order: sentences, figures, tables, texts kept as they are."""

    title: str
    sentences: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    tables: tuple[tuple[str, Table], ...] = ()
    listings: tuple[tuple[str, str], ...] = field(default=())


def table(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Table:
    """A table of any sequences."""
    return Table(tuple(header), tuple(tuple(row) for row in rows))


def trimmed(shown: Table, keep: Sequence[str] = ()) -> Table:
    """Without the columns that say the same in every row, which the note says once, and those that say nothing; the first one
    and those of `keep` stay, and so does all of a table with one row."""
    if len(shown.rows) < 2:
        return shown
    columns = dict(zip(shown.header, zip(*shown.rows, strict=True), strict=True))
    stay = {name for i, (name, cells) in enumerate(columns.items()) if i == 0 or name in keep or len(set(cells)) > 1}
    same = [f"{name}: {cells[0]}" for name, cells in columns.items() if name not in stay and cells[0] is not None]
    note = f"The same in every row: {'; '.join(same)}." if same else ""
    left = [name for name in columns if name in stay]
    return Table(tuple(left), tuple(zip(*(columns[name] for name in left), strict=True)), note)
