"""Tables that can be read in a terminal of any width: nothing in them is cut, no word is broken."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from lora_a2.display.console import print_line, print_table, stdout_console
from lora_a2.system.text import visible

Row = Sequence[str]
_MOST_ROWS = 20
"""Of a table that --json has whole."""


def print_columns(
    header: Row, rows: Sequence[Row], console: Console | None = None, *, left: Sequence[int] = ()
) -> None:
    """Rows under their header, to standard output.

    Where they are wider than the terminal, texts go on in the next line, between words. Where that is not enough, long headers
    become numbers that are explained below; and where nothing helps, each row is a list of its own. Files and pipes get whole
    tables.

    Args:
        header: names of the columns.
        rows: as many texts each.
        console: where to; None: standard output.
        left: numbers of columns whose texts begin at the left, besides the first; others are set right, as figures are.
    """
    console = console or stdout_console()
    header, rows = [visible(name) for name in header], [[visible(text) for text in row] for row in rows]
    starts = {0, *left}
    if not console.is_terminal:
        console.width = max(console.width, sum(_full([header, *rows])) + _frame(len(header)))
    short, legend = _numbered(header, rows)
    for names, below in ((header, []), (short, legend)):
        widths = _widths([names, *rows], console.width - _frame(len(names)))
        if widths is not None:
            console.print(_table(names, rows, widths, starts))
            print_table(below, console)
            return
    if not rows:
        print_line(console, ", ".join(header))
    for row in rows:
        print_line(console, f"{header[0]}: {row[0]}")
        print_table([(f"  {name}", text) for name, text in zip(header[1:], row[1:], strict=True)], console)


def _table(names: Row, rows: Sequence[Row], widths: Sequence[int], left: set[int]) -> Table:
    table = Table(box=SIMPLE, pad_edge=False)
    for number, (name, width) in enumerate(zip(names, widths, strict=True)):
        table.add_column(name, width=width, justify="left" if number in left else "right")
    for row in rows:
        table.add_row(*row)
    return table


def _frame(columns: int) -> int:
    """What borders and the space between columns take."""
    return 3 * columns - 1


def _full(lines: Sequence[Row]) -> list[int]:
    """The widths of the columns of these lines if nothing is wrapped."""
    return [max(map(cell_len, column)) for column in zip(*lines, strict=True)]


def _longest_word(text: str) -> int:
    return max(map(cell_len, text.split(" ")))


def _widths(lines: Sequence[Row], room: int) -> list[int] | None:
    """Widths of the columns that together take at most `room`; None: a word would have to be broken."""
    full = _full(lines)
    widths = [max(map(_longest_word, column)) for column in zip(*lines, strict=True)]
    # Row names stay in one line, if that is possible at all.
    widths[0] = full[0] if full[0] + sum(widths[1:]) <= room else widths[0]
    if sum(widths) > room:
        return None
    while widths != full and sum(widths) < room:
        narrowest = min((i for i in range(len(full)) if widths[i] < full[i]), key=lambda i: widths[i] / full[i])
        widths[narrowest] += 1
    return widths


def _numbered(header: Row, rows: Sequence[Row]) -> tuple[list[str], list[tuple[str, str]]]:
    """The header with numbers for names with a word that is wider than all of their column, and what the numbers stand for."""
    short, legend = list(header), list[tuple[str, str]]()
    for number, (name, *column) in enumerate(zip(header, *rows, strict=True)):
        if number and _longest_word(name) > max(map(cell_len, column), default=0):
            short[number] = f"({len(legend) + 1})"
            legend.append((short[number], name))
    return short, legend


def print_rows(
    title: str,
    rows: Sequence[Mapping[str, Any]],
    show: Callable[[str, float], str],
    console: Console | None = None,
) -> None:
    """A table with the keys of its rows at its head, to standard output; of many rows the first ones. `show` tells of fractions."""
    console = console or stdout_console()
    print_line(console, "")
    print_line(console, title)
    left = [number for number, value in enumerate(rows[0].values()) if isinstance(value, str)]
    cells = [[_cell(name, value, show) for name, value in row.items()] for row in rows[:_MOST_ROWS]]
    print_columns([_head(name) for name in rows[0]], cells, console, left=left)
    if len(rows) > _MOST_ROWS:
        print_line(console, f"  and {len(rows) - _MOST_ROWS:,} more: --json has all of them")


def _head(name: str) -> str:
    """num_examples → Examples"""
    return name.removeprefix("num_").replace("_", " ").capitalize()


def _cell(name: str, value: Any, show: Callable[[str, float], str]) -> str:
    if value is None:
        return "-"
    return show(name, value) if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
