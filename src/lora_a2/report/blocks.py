"""What a page is made of. Texts are plain: whatever is in them, the template escapes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Cell = str | int | float | None
"""Numbers are right-aligned; None is a blank."""


@dataclass(frozen=True)
class Table:
    """Rows under a header, one cell for each column; the first column names the row."""

    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

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
