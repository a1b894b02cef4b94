"""JSON files as columns, read by Python's own parser: whole numbers keep all their digits, and nesting has a limit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Records:
    """Columns of equal length, used as a `datasets.Dataset` is; what a row lacks is None."""

    columns: Mapping[str, list[Any]]
    features: Mapping[str, None]

    @property
    def column_names(self) -> list[str]:
        """In the order of their first appearance."""
        return list(self.columns)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, name: str) -> list[Any]:
        return self.columns[name]


def read_records(path: Path) -> Records:
    """A file with an object a line, one list of objects, or one object of lists.

    Raises:
        ValueError: it is none of these; the message names the line.
    """
    text = path.read_text(encoding="utf-8-sig")
    try:
        rows = list(_rows(text))
        json.dumps(rows, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("objects are nested too deep") from None
    except UnicodeEncodeError:
        raise ValueError("it has half of a character (a lone surrogate such as \\ud800)") from None
    columns: dict[str, list[Any]] = {}
    for number, row in enumerate(rows):
        for name in row.keys() - columns.keys():
            columns[name] = [None] * number
        for name, values in columns.items():
            values.append(row.get(name))
    if not columns:
        raise ValueError("it holds no object")
    ordered = dict.fromkeys(name for row in rows for name in row)
    return Records({name: columns[name] for name in ordered}, dict.fromkeys(ordered))


def _rows(text: str) -> Iterator[dict[str, Any]]:
    try:
        whole = json.loads(text)
    except ValueError:  # more than one value, or a mistake: line by line it is told where
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield from _objects([_parsed(line, number)], f"line {number}")
        return
    yield from _objects(whole if isinstance(whole, list) else _of_lists(whole))


def _parsed(line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number}: {error}") from None
    except ValueError:  # Python's limit on the digits of a whole number
        raise ValueError(f"line {number} has a whole number of thousands of digits") from None


def _objects(values: list[Any], place: str | None = None) -> Iterator[dict[str, Any]]:
    for number, value in enumerate(values, start=1):
        if not isinstance(value, dict):
            raise ValueError(f"{place or f'row {number}'} holds a {type(value).__name__}, not an object")
        yield value


def _of_lists(value: Any) -> list[Any]:
    """Rows of an object of lists; any other object is a row itself."""
    if not isinstance(value, dict) or not value or not all(isinstance(column, list) for column in value.values()):
        return [value]
    lengths = {len(column) for column in value.values()}
    if len(lengths) > 1:
        raise ValueError(f"its lists have different lengths: {', '.join(map(str, sorted(lengths)))}")
    return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
