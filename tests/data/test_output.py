"""A labelled table: the columns of the user's own, as they were, and those that were added."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lora_a2.data.output import free_names, require_writable, write_table
from lora_a2.data.tables import Table, read_table
from lora_a2.errors import ConfigError, DataError

ADDED = {"label": ["späte", 'a "b"'], "probability": [0.5, 0.25]}


def table(tmp_path: Path, name: str, content: str) -> Any:
    (tmp_path / name).write_text(content, encoding="utf-8")
    return read_table(tmp_path / name)


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("in.csv", 'id,text,note\n007,"a, b\n""c""",NA\n8,tab\there,\n'),
        ("in.tsv", "id\ttext\tnote\n007\ta, b\tNA\n8\tc;d\t\n"),
        ("in.jsonl", '{"id": "007", "text": "a", "note": "x"}\n{"id": "8", "text": "ü ", "note": ""}\n'),
    ],
)
def test_what_is_written_is_read_back(name: str, content: str, ending: str, tmp_path: Path) -> None:
    given = table(tmp_path, name, content)
    path = tmp_path / f"out{ending}"
    write_table(path, given, ADDED)
    found = read_table(path)
    assert found.names == ("id", "text", "note", "label", "probability")
    for column in given.names:
        assert found.column(column) == given.column(column)
    assert found.column("label") == ADDED["label"]
    assert list(map(float, found.column("probability"))) == ADDED["probability"]


def test_values_keep_their_kind_where_the_format_has_it(tmp_path: Path) -> None:
    given = table(
        tmp_path, "in.jsonl", '{"text": "a", "n": 9007199254740993, "tags": ["x"]}\n{"text": "b", "n": null}\n'
    )
    for ending in (".jsonl", ".parquet"):
        write_table(tmp_path / f"out{ending}", given, ADDED)
        found = read_table(tmp_path / f"out{ending}")
        assert found.column("n") == [9007199254740993, None]
        assert found.column("tags") == [["x"], None]
    with pytest.raises(DataError, match="column 'tags' holds a list"):
        write_table(tmp_path / "out.csv", given, ADDED)
    assert not (tmp_path / "out.csv").exists()


def test_what_a_format_cannot_hold_is_refused(tmp_path: Path) -> None:
    mixed = table(tmp_path, "in.jsonl", '{"text": "a", "n": 1}\n{"text": "b", "n": "two"}\n')
    with pytest.raises(DataError, match=r"cannot be written as '.*out.parquet'.*choose another of \.csv"):
        write_table(tmp_path / "out.parquet", mixed, ADDED)
    endless = table(tmp_path, "nan.jsonl", '{"text": "a", "n": NaN}\n{"text": "b", "n": 1}\n')
    with pytest.raises(DataError, match=r"cannot be written as '.*out.jsonl'"):
        write_table(tmp_path / "out.jsonl", endless, ADDED)


def test_days_are_written_as_days(tmp_path: Path) -> None:
    pd.DataFrame({"text": ["a", "b"], "day": [date(2026, 1, 2)] * 2}).to_parquet(tmp_path / "in.parquet")
    given = read_table(tmp_path / "in.parquet")
    write_table(tmp_path / "out.jsonl", given, ADDED)
    assert json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])["day"] == "2026-01-02"
    write_table(tmp_path / "out.csv", given, ADDED)
    assert read_table(tmp_path / "out.csv").column("day") == ["2026-01-02"] * 2


def test_a_file_that_cannot_be_written_is_refused_first(tmp_path: Path) -> None:
    for name, expected in (
        ("out.xls", r"says no format; give a name that ends in \.csv"),
        ("out", "says no format"),
        ("none/out.csv", "lies in a folder that does not exist"),
        ("folder.csv", "is a folder"),
    ):
        (tmp_path / "folder.csv").mkdir(exist_ok=True)
        with pytest.raises(ConfigError, match=expected):
            require_writable(tmp_path / name)
    require_writable(tmp_path / "out.CSV")


def test_no_column_of_the_table_is_written_over(tmp_path: Path) -> None:
    usual, other = ("label", "probability"), ("predicted_label", "predicted_probability")

    def names(header: str) -> Any:
        given: Table = table(tmp_path, "in.csv", f"{header}\n" + ",".join("x" for _ in header.split(",")) + "\n")
        return free_names(given, usual, other)

    assert names("text") == usual
    assert names("text,label") == names("probability,text") == other
    with pytest.raises(DataError, match=r"'label', 'predicted_probability' of .* would be written over"):
        names("text,label,predicted_probability")
