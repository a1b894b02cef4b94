"""Files as people have them: any separator, encodings of other programs, Excel, gaps; and what may be wrong with them."""

from __future__ import annotations

import csv
import gzip
import io
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labelled_data import pairs, refused
from lora_a2.config.run import dump_config, load_config, make_config
from lora_a2.data.sources import LabelledData, count_rows, load_data, load_examples
from lora_a2.data.text_files import find_separator
from lora_a2.data.writing import load_samples, load_written
from lora_a2.errors import ConfigError, DataError

ROWS = [
    (
        f"Größe {number}, „gut“; naja|so\tla la" if number % 3 else f'ein "Zitat" {number}\nzwei',
        ("ja", "nein")[number % 2],
    )
    for number in range(20)
]


def table(rows: list[tuple[Any, ...]], separator: str = ",", names: tuple[str, ...] = ("text", "label")) -> str:
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=separator, lineterminator="\n").writerows([names, *rows])
    return out.getvalue()


def save(path: Path, text: str, encoding: str = "utf-8") -> str:
    path.write_bytes(text.encode(encoding))
    return str(path)


# --- separators


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("ending", [".csv", ".tsv", ".csv.gz"])
def test_a_separator_is_found(tmp_path: Path, separator: str, ending: str) -> None:
    path = tmp_path / f"mine{ending}"
    content = table(ROWS, separator).encode()
    path.write_bytes(gzip.compress(content) if ending.endswith("gz") else content)
    assert pairs(load_data(str(path))) == Counter(ROWS)


@pytest.mark.parametrize(
    ("separator", "name"), [(",", "comma"), (";", ";"), ("\t", "tab"), ("\t", "\\t"), ("|", "Pipe"), ("^", "^")]
)
def test_a_separator_is_named(tmp_path: Path, separator: str, name: str) -> None:
    assert pairs(load_data(save(tmp_path / "mine.csv", table(ROWS, separator)), separator=name)) == Counter(ROWS)


def test_a_separator_that_is_not_found_is_asked_for(tmp_path: Path) -> None:
    rows = [("a", "x"), ("b", "y")]
    path = save(tmp_path / "mine.csv", table(rows, "^"))
    refused("name it with --label-column, or what separates the values with --separator", path)
    with pytest.raises(DataError, match="or what separates the values with --separator"):
        load_written(save(tmp_path / "b.csv", table(rows, "^", ("prompt", "completion"))))


CELLS = st.text(st.sampled_from('ab ,;|\t"'), max_size=8)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=8), st.sampled_from(",;\t|"))
def test_a_well_formed_table_is_always_found(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str]], separator: str
) -> None:
    path = tmp_path_factory.mktemp("found") / "x.csv"
    save(path, table(rows, separator, ("one", "two", "three")))
    assert find_separator(path, ",") == separator


def test_one_column_and_half_broken_rows_keep_the_usual_separator(tmp_path: Path) -> None:
    for text in ("text\na;b\nc;d\n", "text,label\nhello, world,x\nbye, all,y\n", "", "text\n"):
        save(tmp_path / "x.csv", text)
        assert find_separator(tmp_path / "x.csv", ",") == ","
        assert find_separator(tmp_path / "x.csv", "\t") in ("\t", ",")


def test_long_fields_do_not_hide_the_separator(tmp_path: Path) -> None:
    rows = [("x" * 200_000, "ja"), *ROWS]
    assert pairs(load_data(save(tmp_path / "mine.csv", table(rows, ";")))) == Counter(rows)


# --- encodings


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
def test_a_mark_tells_the_encoding(tmp_path: Path, encoding: str, ending: str) -> None:
    text = table(ROWS, ";")
    if ending == ".jsonl":
        text = pd.DataFrame(ROWS, columns=["text", "label"]).to_json(orient="records", lines=True, force_ascii=False)
    path = save(tmp_path / f"mine{ending}", text, encoding)
    assert pairs(load_data(path)) == Counter(ROWS)
    assert pairs(load_data(path, encoding=encoding)) == Counter(ROWS)


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16-le", "utf-16-be"])
def test_the_error_names_an_encoding_that_reads_the_file(tmp_path: Path, encoding: str) -> None:
    path = save(tmp_path / "mine.csv", table(ROWS), encoding)
    refused(f"cannot be read as CSV: .*try --encoding {encoding}", path)
    assert pairs(load_data(path, encoding=encoding)) == Counter(ROWS)


def test_bytes_that_cp1252_lacks_are_latin_1(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_bytes(b"text,label\nfine,a\n\xe9\x81,b\nx,a\ny,b\nz,a\n")
    refused("line 3 is not UTF-8 text .byte 0xe9.; try --encoding latin-1", str(path))
    assert "é\x81" in {text for text, _ in pairs(load_data(str(path), encoding="latin-1", test_fraction=0.3))}


def test_a_mistake_far_into_a_file_is_found_in_its_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    lines = [b"text,label", *[b"x" * 50 + b"\xc3\xa9,a"] * 60_000, b"\xff,b", b"last,b"]
    path.write_bytes(b"\n".join(lines))
    refused("line 60002 is not UTF-8 text .byte 0xff.", str(path))


def test_an_encoding_that_would_spoil_the_texts_is_refused(tmp_path: Path) -> None:
    refused("it is UTF-8 text, and encoding is latin-1", save(tmp_path / "a.csv", table(ROWS)), encoding="latin-1")
    marked = save(tmp_path / "b.csv", table(ROWS), "utf-16")
    refused("begins with the mark of utf-16, and encoding is latin-1", marked, encoding="latin-1")
    plain = save(tmp_path / "c.csv", "text,label\na,x\nb,y\nc,x\nd,y\ne,x\nf,y\n")
    assert len(load_data(plain, encoding="latin-1").train) == 5


# --- Excel


def workbook(path: Path, *sheets: pd.DataFrame) -> str:
    with pd.ExcelWriter(path) as book:
        for number, sheet in enumerate(sheets):
            sheet.to_excel(book, sheet_name=f"Sheet {number}", index=False)
    return str(path)


def test_a_workbook_gives_the_texts_as_written(tmp_path: Path) -> None:
    rows = [*ROWS, ("NA", "ja"), ("007", "nein"), ("null", "ja")]
    frame = pd.DataFrame(rows, columns=["text", "label"])
    assert pairs(load_data(workbook(tmp_path / "mine.xlsx", frame))) == Counter(rows)


def test_numbers_in_cells_are_what_a_csv_file_would_hold(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": [f"t{n}" for n in range(12)], "label": [n % 3 for n in range(12)], "x": 0.5})
    assert load_data(workbook(tmp_path / "mine.xlsx", frame)).label_names == ("0", "1", "2")


def test_empty_rows_and_columns_of_a_workbook_are_none(tmp_path: Path) -> None:
    frame = pd.DataFrame([("a", "x", None), (None, None, " "), ("b", "y", None), ("c", "x", None), ("d", "y", None)])
    frame.columns = ["text", "label", " "]
    data = load_data(workbook(tmp_path / "mine.xlsx", frame), test_fraction=0.5)
    assert set(pairs(data)) == {("a", "x"), ("b", "y"), ("c", "x"), ("d", "y")}


def test_of_several_sheets_the_first_is_read_and_the_user_told(tmp_path: Path) -> None:
    frame = pd.DataFrame(ROWS, columns=["text", "label"])
    data = load_data(workbook(tmp_path / "mine.xlsx", frame, frame[:3]))
    assert pairs(data) == Counter(ROWS)
    assert any("has 2 sheets; the first, 'Sheet 0', is read" in note for note in data.notes)


def test_workbooks_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "no.xlsx").write_bytes(b"hello")
    refused("cannot be read as XLSX", str(tmp_path / "no.xlsx"))
    refused("first sheet, 'Sheet 0', is empty", workbook(tmp_path / "a.xlsx", pd.DataFrame()))
    refused("no row below the header", workbook(tmp_path / "b.xlsx", pd.DataFrame(columns=["text", "label"])))
    good = workbook(tmp_path / "c.xlsx", pd.DataFrame(ROWS, columns=["text", "label"]))
    monkeypatch.setattr("lora_a2.data.tables.MOST_UNPACKED", 100)
    monkeypatch.setattr("lora_a2.data.tables.LARGEST_RATIO", 0.001)
    refused("unpacks to more than 100 bytes", good)
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    refused(r"pip install 'lora-a2\[excel\]'", good)


# --- options that do not fit


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"separator": ";;"}, "separator: ';;' is not one character"),
        ({"separator": '"'}, "separator: .* is not one character"),
        ({"encoding": "klingon"}, "encoding: 'klingon' is no known encoding"),
        ({"encoding": "base64"}, "encoding: 'base64' is no known encoding"),
        ({"on_missing": "skip"}, "on-missing: 'skip'"),
    ],
)
def test_wrong_values_are_refused(options: dict[str, Any], message: str) -> None:
    refused(message, "helpdesk", ConfigError, **options)
    with pytest.raises(ConfigError, match=next(iter(options)).replace("_", "-")):
        make_config({}, options)


def test_options_of_files_need_such_a_file(tmp_path: Path) -> None:
    parquet = str(tmp_path / "mine.parquet")
    pd.DataFrame(ROWS, columns=["text", "label"]).to_parquet(parquet)
    refused("separator: it is for files that end in .csv, .tsv", parquet, ConfigError, separator=";")
    refused("encoding: it is for files that end in .csv", parquet, ConfigError, encoding="cp1252")
    test = save(tmp_path / "test.csv", table(ROWS, "^"))
    assert len(load_data(parquet, test_data=test, separator="^").test) == len(ROWS)
    with pytest.raises(ConfigError, match="separator: it is for files"):
        load_written(pd.DataFrame({"text": ["a"]}), separator=";")


def test_options_of_files_are_kept_in_a_configuration(tmp_path: Path) -> None:
    config = make_config({}, {"separator": "tab", "encoding": "cp1252", "on_missing": "drop"})
    assert config.separator == "\t"
    (tmp_path / "c.toml").write_text(dump_config(config))
    assert make_config(load_config(tmp_path / "c.toml"), {}) == config
    assert config.data_options()["separator"] == "\t"


# --- gaps

GAPS = [("a", "x"), ("", "y"), ("b", "y"), ("c", " "), ("\t", ""), ("d", "x"), ("e", "y")]
COMPLETE = Counter([("a", "x"), ("b", "y"), ("d", "x"), ("e", "y")])


def test_gaps_are_counted_and_named(tmp_path: Path) -> None:
    path = save(tmp_path / "mine.csv", table(GAPS))
    refused(
        r"^2 of 7 rows of .*mine.csv' have no text in column 'text' \(row 2, row 5\); 2 of 7 rows of .* have no label in column "
        r"'label' \(row 4, row 5\); fill them, remove the rows, or leave them out with --on-missing drop.$",
        path,
    )
    many = save(tmp_path / "many.csv", table([*GAPS, *[("", "x")] * 2000]))
    refused(r"2,002 of 2,007 rows .* \(row 2, row 5, row 8 and 1,999 more\)", many)


def test_gaps_are_left_out_and_told(tmp_path: Path) -> None:
    data = load_data(save(tmp_path / "mine.csv", table(GAPS)), on_missing="drop", test_fraction=0.5)
    assert pairs(data) == COMPLETE
    assert [note.split(" rows")[0] for note in data.notes] == ["Left out: 2 of 7", "Left out: 2 of 7"]


def test_a_row_keeps_its_number_after_a_gap(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    frame = pd.DataFrame([("a", "x"), (None, "y"), (7, "y")], columns=["text", "label"])
    frame.to_json(path, orient="records", lines=True)
    refused("Row 3 of .* holds a int in column 'text'", str(path), on_missing="drop")


def test_gaps_of_clients_are_named_in_the_client_s_own_table() -> None:
    frame = pd.DataFrame([("a", "x"), ("b", "y"), ("c", "x"), ("d", "y")], columns=["text", "label"])
    gap = pd.DataFrame([("a", "x"), ("b", "y"), (None, "y"), ("d", None)], columns=["text", "label"])
    with pytest.raises(DataError, match="Row 3 of the DataFrame of client 'b' has no text"):
        load_data({"a": frame, "b": gap})
    data = load_data({"a": frame, "b": gap}, on_missing="drop", test_fraction=0.25)
    clients = Counter(data.train.clients or ()) + Counter(data.test.clients or ())
    assert clients == {"a": 4, "b": 2}


def test_rows_without_a_client_are_gaps(tmp_path: Path) -> None:
    rows = [(f"t{n}", "xy"[n % 2], "" if n == 3 else f"c{n % 3}") for n in range(12)]
    path = save(tmp_path / "mine.csv", table(rows, ",", ("text", "label", "shop")))
    refused("Row 4 of .* has no client in column 'shop'", path, client_column="shop")
    data = load_data(path, client_column="shop", on_missing="drop")
    assert len(data.train) + len(data.test) == 11
    assert len(load_data(path).train) + len(load_data(path).test) == 12


def test_a_table_of_nothing_but_gaps_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "mine.csv", table([("", "x"), (" ", "y")]))
    refused("No row of .*mine.csv' is left: each lacks its text", path, on_missing="drop")


def test_test_labels_that_training_lacks(tmp_path: Path) -> None:
    train = save(tmp_path / "a.csv", table(ROWS))
    test = save(tmp_path / "b.csv", table([("t1", "ja"), ("t2", "oft"), ("t3", "nie"), ("t4", "nie")]))
    says = (
        r"3 of 4 rows of .*b.csv' have labels that are not among the 2 known ones: 'nie', 'oft' \(row 2, row 3, row 4\)"
    )
    refused(f"{says}; .*--on-missing drop", train, test_data=test)
    data = load_data(train, test_data=test, on_missing="drop")
    assert data.test.texts == ("t1",)
    assert data.label_names == ("ja", "nein")
    [note] = data.notes
    assert note.startswith("Left out: 3 of 4 rows")
    none = save(tmp_path / "c.csv", table([("t2", "oft")]))
    refused("no row is left; check --label-column", train, test_data=none, on_missing="drop")


def test_training_labels_that_a_federation_lacks_are_never_left_out(tmp_path: Path) -> None:
    path = save(tmp_path / "a.csv", table(ROWS))
    refused("10 of 20 rows .* not among the 2 known ones: 'nein'", path, label_names=("ja", "x"), on_missing="drop")


def test_who_reads_examples_alone_is_told_of_gaps_too(tmp_path: Path) -> None:
    path = save(tmp_path / "mine.csv", table(GAPS))
    told: list[str] = []
    assert len(load_examples(path, ("x", "y"), on_missing="drop", say=told.append)) == 4
    assert len(told) == 2
    with pytest.warns(UserWarning, match="Left out: 2 of 7 rows"):
        load_examples(path, ("x", "y"), on_missing="drop")
    assert count_rows(path, on_missing="drop") == 4
    with pytest.warns(UserWarning, match="Left out"):
        assert len(load_samples(save(tmp_path / "t.jsonl", '{"text": "a"}\n{"text": null}'), on_missing="drop")) == 1


# --- gaps of what a model is to write


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "a", "completion": "b"}, {"prompt": " ", "completion": "b"}], "Row 2 .* has no prompt"),
        ([{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": None}], "Row 2 .* has no answer"),
        ([{"text": "a"}, {"text": ""}], "Row 2 .* has no text"),
        ([{"messages": [{"role": "assistant", "content": "a"}]}, {"messages": None}], "Row 2 .* has no chat"),
        ([{"messages": [{"role": "assistant", "content": "a"}]}, {"messages": []}], "Row 2 .* has no chat"),
    ],
)
def test_gaps_of_written_examples(rows: list[dict[str, Any]], message: str) -> None:
    frame = pd.DataFrame([*rows, *rows[:1] * 3])
    with pytest.raises(DataError, match=message):
        load_written(frame)
    data = load_written(frame, on_missing="drop", test_fraction=0.4)
    assert len(data.train) + len(data.test) == len(frame) - 1
    assert data.notes[0].startswith("Left out: 1 of 5 rows of the DataFrame without a")


def test_written_examples_out_of_any_file(tmp_path: Path) -> None:
    rows = [(f"Frage {n}; für dich", f"Antwort {n}") for n in range(10)]
    text = table(rows, ";", ("prompt", "completion"))
    read = load_written(save(tmp_path / "mine.csv", text, "cp1252"), encoding="cp1252")
    asked = sorted(turns[0].content for turns in (s.turns for s in (*read.train.samples, *read.test.samples)))
    assert asked == [prompt for prompt, _ in rows]
    assert read.columns == {"prompt": "prompt", "answer": "completion"}


# --- doubts


def noted(says: str, data: LabelledData | Any) -> None:
    assert [says in note for note in data.notes].count(True) == 1, data.notes


def test_good_data_raise_no_doubt() -> None:
    assert load_data("helpdesk").notes == ()


def test_labels_that_look_alike() -> None:
    labels = ["Billing", "billing", "Bill ing", "other"]
    frame = pd.DataFrame({"text": [f"t{n}" for n in range(40)], "label": [labels[n % 4] for n in range(40)]})
    noted(
        "labels that differ by case or blanks only, and are classes of their own: 'Billing' (10 rows)",
        load_data(frame),
    )
    frame["label"] = [("STRASSE", "straße", "x y", "xy")[n % 4] for n in range(40)]
    noted("2 groups of labels that differ by case or blanks only", load_data(frame))


def test_examples_in_both_parts() -> None:
    train = pd.DataFrame({"text": [f"t{n}" for n in range(10)], "label": ["x", "y"] * 5})
    test = pd.DataFrame({"text": ["t1 ", "new", "t9"], "label": ["x", "y", "x"]})
    noted("2 of 3 test examples are in the training set too", load_data(train, test_data=test))
    pairs = pd.DataFrame({"prompt": ["a", "b", "a"], "completion": ["1", "2", "3"]})
    noted("1 of 2 test examples is in", load_written(pairs, test_data=pairs[1:].replace("3", "4")))


def test_texts_that_are_numbers() -> None:
    frame = pd.DataFrame({"text": [f"{n},5" for n in range(10)], "label": ["x", "y"] * 5})
    noted("texts of column 'text' are numbers, such as '0,5'", load_data(frame))
    assert load_data(frame.replace("3,5", "three")).notes == ()
    noted("texts of column 'text' are numbers", load_written(frame[["text"]]))


def test_a_column_of_clients_that_tells_rows_apart() -> None:
    rng = random.Random(0)
    frame = pd.DataFrame(
        {"text": [f"t{n}" for n in range(30)], "label": ["x", "y"] * 15, "id": rng.sample(range(99), 30)}
    )
    noted("Column 'id' has 30 values in 30 rows", load_data(frame, client_column="id"))
    noted("Column 'id' has 30 values in 30 rows", load_written(frame[["text", "id"]], client_column="id"))
    frame["id"] %= 5
    assert load_data(frame, client_column="id").notes == ()
