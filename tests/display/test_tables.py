"""Tables at any width, for terminals of any encoding: every name and every text can be read whole."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_a2.commands.methods import _cells
from lora_a2.display.console import PlainConsole
from lora_a2.display.tables import print_columns
from lora_a2.methods import METHODS

WIDTHS = (30, 50, 80, 120)
METHODS_TABLE = (
    ["Method", "Uploads", "Downloads", "Exact", "Personal", "Mixed ranks"],
    [_cells(method) for method in METHODS.values()],
)
LAYERS = (
    ["Layer", "attention.self.query", "attention.self.key", "attention.output.dense", "intermediate.dense"],
    [[str(layer), "0.25", "1.00", "", "0.5"] for layer in range(4)],
)
RUNS = (
    ["Run", "Test accuracy", "Gradient similarity", "Discordance / change", "Updates r", "p", "Ranks r", "p"],
    [[f"lora-a2-seed{seed}", "71.3 %", "0.123", "0.0456", "0.71", "0.002", "0.65", "0.003"] for seed in range(3)],
)
WIDE = (["Setting"] + [f"measure-number-{n}" for n in range(30)], [["a"] + ["12.5 ± 0.3"] * 30])
TABLES = {"methods": METHODS_TABLE, "layers": LAYERS, "runs": RUNS, "wide": WIDE}


def printed(
    header: list[str], rows: list[list[str]], width: int, encoding: str = "utf-8", terminal: bool = True
) -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace")
    console = PlainConsole(file=stream, width=width, force_terminal=terminal, color_system=None)
    print_columns(header, rows, console)
    stream.flush()
    assert isinstance(stream.buffer, io.BytesIO)
    return stream.buffer.getvalue().decode(encoding)


def words(text: str) -> list[str]:
    return re.findall(r"[^\s─]+", text)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", TABLES)
def test_every_name_and_text_is_there_whole(name: str, width: int) -> None:
    header, rows = TABLES[name]
    text = printed(header, rows, width)
    assert "…" not in text
    for wanted in (*header, *(cell for row in rows for cell in row)):
        assert set(words(wanted)) <= set(words(text)) | {word.rstrip(":,") for word in words(text)}, wanted


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["methods", "layers", "runs"])
def test_no_line_of_a_table_is_wider_than_the_terminal(name: str, width: int) -> None:
    text = printed(*TABLES[name], width)
    if "─" in text:
        assert max(map(len, text.splitlines())) <= width


def test_long_names_of_narrow_columns_are_numbers_that_are_explained() -> None:
    text = printed(*LAYERS, 50)
    assert "─" in text
    assert re.search(r"^ *Layer +\(1\) +\(2\) +\(3\) +\(4\) *$", text, re.M)
    assert text.index("(1)  attention.self.query") > text.index("0.25")
    assert "(4)  intermediate.dense\n" in text


def test_where_nothing_helps_each_row_is_a_list() -> None:
    text = printed(*METHODS_TABLE, 30)
    assert "─" not in text
    assert "Method: lora-a2\n  Uploads      selected slices of B, then A\n  Downloads    A and B\n" in text


@pytest.mark.parametrize("name", TABLES)
def test_pipes_get_the_whole_table(name: str) -> None:
    header, rows = TABLES[name]
    text = printed(header, rows, 40, terminal=False)
    assert all("  ".join(header).split()[0] in text for _ in header)
    lines = text.splitlines()
    (named,) = [line for line in lines if set(words(" ".join(header))) <= set(words(line))]
    assert len(lines) == len(rows) + 4, named


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", TABLES)
def test_ascii_terminals_get_ascii(name: str, width: int) -> None:
    text = printed(*TABLES[name], width, "ascii")
    assert text.isascii()
    assert "\\u2500" not in text


cells = st.lists(st.text("ab ", min_size=1, max_size=9).map(str.strip), min_size=3, max_size=3)


@given(cells, st.lists(cells, max_size=4), st.integers(10, 60))
def test_any_table_at_any_width(header: list[str], rows: list[list[str]], width: int) -> None:
    text = printed(header, rows, width)
    if "─" in text:
        assert max(map(len, text.splitlines())) <= width
    for wanted in (*header, *(cell for row in rows for cell in row)):
        assert set(words(wanted)) <= set(words(text)) | {word.rstrip(":,") for word in words(text)}
