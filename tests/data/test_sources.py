"""Data from files, folders, the package and the hub; what cannot be used is named in one line."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from labelled_data import pairs, refused
from lora_a2.data.newsgroups import GROUPS, is_raw
from lora_a2.data.sources import load_data
from lora_a2.errors import ConfigError

Row = dict[str, Any]
ROWS: list[Row] = [
    {"text": text, "label": label}
    for text, label in [
        ("NA", "yes"),
        ("null", "no"),
        ("None", "yes"),
        ("007", "no"),
        ("two\nlines, one comma", "yes"),
        ('a "quoted" word', "no"),
        ("tab\there", "yes"),
        ("1e5", "no"),
        ("naïve café 😡", "yes"),
        (" spaces ", "no"),
    ]
]


def csv_text(rows: list[Row], delimiter: str = ",") -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def parquet_bytes(rows: list[Row]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


WRITERS: dict[str, Callable[[list[Row]], bytes]] = {
    ".csv": csv_text,
    ".tsv": lambda rows: csv_text(rows, "\t"),
    ".jsonl": lambda rows: "\n".join(json.dumps(row) for row in rows).encode(),
    ".json": lambda rows: json.dumps(rows, indent=1).encode(),
    ".parquet": parquet_bytes,
}


def write(path: Path, rows: list[Row]) -> str:
    """Writes `rows` as the name of `path` says; returns the path as the user would type it."""
    packed = path.suffix == ".gz"
    content = WRITERS[path.with_suffix("").suffix if packed else path.suffix](rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if packed else content)
    return str(path)


# --- formats


@pytest.mark.parametrize("ending", [*WRITERS, *(ending + ".gz" for ending in WRITERS)])
def test_every_format_gives_the_texts_as_written(tmp_path: Path, ending: str) -> None:
    data = load_data(write(tmp_path / f"mine{ending}", ROWS))
    assert data.name == "mine"
    assert data.label_names == ("no", "yes")
    assert pairs(data) == Counter((row["text"], row["label"]) for row in ROWS)
    assert len(data.test) == 2
    assert data.train.labels.dtype == np.int64
    assert data.train.clients is None


@pytest.mark.parametrize("name", ["a[1] * ?.csv", ".hidden.csv", "#x::y.csv", "UPPER.CSV"])
def test_odd_file_names(tmp_path: Path, name: str) -> None:
    path = tmp_path / ".dir" / name
    path.parent.mkdir()
    path.write_bytes(csv_text(ROWS))
    assert len(load_data(str(path)).train) == 8


def test_nothing_stale_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    first = load_data(write(path, ROWS))
    times = path.stat()
    changed = load_data(write(path, [{**row, "text": row["text"].swapcase() + "x"} for row in ROWS]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert first.fingerprint() != changed.fingerprint()


def test_a_byte_order_mark_is_no_part_of_the_name(tmp_path: Path) -> None:
    path = tmp_path / "excel.csv"
    path.write_bytes(b"\xef\xbb\xbf" + csv_text(ROWS))
    assert len(load_data(str(path)).train) == 8


def test_reading_is_quiet_and_leaves_the_settings_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bars = datasets.are_progress_bars_disabled()
    load_data(write(tmp_path / "mine.csv", ROWS))
    assert tuple(capfd.readouterr()) == ("", "")
    assert datasets.are_progress_bars_disabled() == bars


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "the file is empty"),
        ("a.csv", b"text,label\n", "no row below the header"),
        ("a.csv", b"text,text,label\na,b,c\n", "a column name occurs twice"),
        ("a.csv", b"text,label\nhello, world,x\nbye, all,y\n", "cannot be read as CSV: .*Expected 2 fields"),
        ("a.csv", b'text,label\na,x\n"b,y\n', "cannot be read as CSV: .*EOF inside string"),
        ("a.csv", b"text,label\na,x\n\xe9,y\n", "cannot be read as CSV: .*(?i:utf-?8)"),
        ("a.csv.gz", b"text,label\na,x\n", "not a complete gzip file"),
        ("a.jsonl.gz", gzip.compress(WRITERS[".jsonl"](ROWS))[:-20], "not a complete gzip file"),
        ("a.jsonl", b'{"text": "a", "label": "x"}\n{"text":', "cannot be read as JSONL"),
        ("a.json", b"[1, 2", "cannot be read as JSON"),
        ("a.parquet", b"hello", "cannot be read as PARQUET"),
    ],
)
def test_malformed_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    refused(message, str(tmp_path / name))


# --- finding the data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("helpdsk", "no data set 'helpdsk'.*Did you mean 'helpdesk'"),
        ("somewhere/train.csv", "no data set 'somewhere/train.csv'"),
        ("./a/b", "no data set './a/b'"),
        ("", "no data set ''"),
        ("a b/c", "no data set 'a b/c'"),
    ],
)
def test_data_that_does_not_exist(data: str, message: str) -> None:
    refused(message, data)


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    refused("give one that ends in .csv", str(tmp_path / "notes.txt"))
    train = write(tmp_path / "mine.csv", ROWS)
    refused("There is no file", train, test_data=str(tmp_path / "missing.csv"))


def test_a_folder_with_train_and_test(tmp_path: Path) -> None:
    write(tmp_path / "mine" / "train.jsonl.gz", ROWS)
    write(tmp_path / "mine" / "test.csv", ROWS[:4])
    (tmp_path / "mine" / "labels.json").write_text('["yes", "no"]')
    data = load_data(str(tmp_path / "mine"))
    assert (data.name, len(data.train), len(data.test)) == ("mine", 10, 4)
    assert data.train.texts[:4] == data.test.texts == ("NA", "null", "None", "007")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('["no", "yes", "unused"]', ("no", "yes")),
        ('["only one"]', ("0", "1")),
        ('{"no": 0, "yes": 1}', ("0", "1")),
        ("broken", ("0", "1")),
    ],
)
def test_class_numbers_are_named_by_a_list_beside_the_data(
    tmp_path: Path, content: str, expected: tuple[str, ...]
) -> None:
    write(tmp_path / "train.jsonl", [{**row, "label": int(row["label"] == "yes")} for row in ROWS])
    (tmp_path / "labels.json").write_text(content)
    data = load_data(str(tmp_path))
    assert data.label_names == expected
    assert pairs(data) == Counter((row["text"], expected[row["label"] == "yes"]) for row in ROWS)


def test_folders_that_do_not_say_what_to_train_on(tmp_path: Path) -> None:
    write(tmp_path / "test.csv", ROWS)
    refused("has no train file", str(tmp_path))
    write(tmp_path / "train.csv", ROWS)
    write(tmp_path / "train.json.gz", ROWS)
    refused("several train files: train.csv, train.json.gz", str(tmp_path))


# --- columns


def renamed(tmp_path: Path, *names: str) -> str:
    return write(tmp_path / "mine.jsonl", [dict.fromkeys(names, "x") | row_of(names, row) for row in ROWS])


def row_of(names: tuple[str, ...], row: Row) -> Row:
    return {names[0]: row["text"], names[1]: row["label"]}


@pytest.mark.parametrize(
    "names", [("Text", "LABEL"), ("utterance", "intent"), ("tweet", "sentiment"), ("text", "label", "topic", "body")]
)
def test_usual_columns_are_found(tmp_path: Path, names: tuple[str, ...]) -> None:
    assert pairs(load_data(renamed(tmp_path, *names))) == Counter((row["text"], row["label"]) for row in ROWS)


def test_label_text_is_preferred_to_its_number(tmp_path: Path) -> None:
    rows = [{"text": r["text"], "label": int(r["label"] == "yes"), "label_text": r["label"]} for r in ROWS]
    assert load_data(write(tmp_path / "mine.csv", rows)).label_names == ("no", "yes")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("subject", "label"), "'subject', 'label'; name it with --text-column"),
        (("text", "kind"), "'text', 'kind'; name it with --label-column"),
        (("query", "label", "body"), "'query', 'body'.*name one with --text-column"),
        (("text", "intent", "topic"), "'intent', 'topic'.*name one with --label-column"),
    ],
)
def test_columns_that_cannot_be_told(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    refused(message, renamed(tmp_path, *names))


def test_named_columns(tmp_path: Path) -> None:
    path = renamed(tmp_path, "content", "topic", "text", "class")
    data = load_data(path, text_column="content", label_column="topic", client_column="class")
    assert pairs(data) == Counter((row["text"], row["label"]) for row in ROWS)
    assert data.train.clients == ("x",) * 8
    refused("no column 'topics'; its columns are .*Did you mean 'topic'", path, label_column="topics")
    refused("no column 'user'", path, client_column="user")


def test_the_test_set_needs_the_same_columns(tmp_path: Path) -> None:
    train, other = write(tmp_path / "a.csv", ROWS), write(tmp_path / "b.csv", [{"text": "x", "labels": "no"}])
    refused("b.csv' has no column 'label'.*Did you mean 'labels'", train, test_data=other)


# --- labels and texts


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_integer_labels_sort_as_numbers(tmp_path: Path, ending: str) -> None:
    rows = [{"text": str(number), "label": number % 12} for number in range(48)]
    data = load_data(write(tmp_path / f"mine{ending}", rows))
    assert data.label_names == tuple(str(number) for number in range(12))
    assert all(int(text) % 12 == label for text, label in zip(data.train.texts, data.train.labels, strict=True))


def test_class_labels_get_their_names(tmp_path: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["up", "down"])})
    rows = {"text": [str(number) for number in range(10)], "label": [0, 1] * 5}
    table = datasets.Dataset.from_dict(rows, features=features)
    pq.write_table(table.data.table, tmp_path / "mine.parquet")
    data = load_data(str(tmp_path / "mine.parquet"))
    assert data.label_names == ("down", "up")
    assert all(label == 1 - int(text) % 2 for text, label in zip(data.train.texts, data.train.labels, strict=True))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a", "x"), ("", "y")], "Row 2 of .*mine.* has no text"),
        ([("a", "x"), ("b", "y"), (" \n", "y")], "Row 3 of .*mine.* has no text"),
        ([("a", "x"), (None, "y")], "Row 2 of .*mine.* has no text"),
        ([("a", None), ("b", "y")], "Row 1 of .*mine.* has no label"),
        ([("a", "x"), ("b", " ")], "Row 2 of .*mine.* has no label"),
        ([("a", 0.5), ("b", 1.5)], "holds 0.5 in column 'label'"),
        ([("a", ["x"]), ("b", ["y"])], "a label must be a name or a whole number"),
        ([(1, "x"), (2, "y")], "Row 1 of .*mine.* holds a int in column 'text'"),
        ([("a", "x"), ("b", "x")], "All examples of .*mine.* have the label 'x'"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path: Path, rows: list[tuple[Any, Any]], message: str) -> None:
    refused(message, write(tmp_path / "mine.jsonl", [{"text": text, "label": label} for text, label in rows]))


def test_a_csv_row_without_its_label(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("text,label\na,x\nb\n")
    refused("Row 2 of .* has no label", str(tmp_path / "mine.csv"))


def test_integers_that_became_floats_are_still_class_numbers(tmp_path: Path) -> None:
    rows = [{"text": str(number), "label": float(number % 2)} for number in range(10)]
    assert load_data(write(tmp_path / "mine.parquet", rows)).label_names == ("0", "1")


def test_a_label_that_only_the_test_set_has(tmp_path: Path) -> None:
    train, test = write(tmp_path / "a.csv", ROWS), write(tmp_path / "b.csv", [*ROWS, {"text": "x", "label": "maybe"}])
    refused(
        "1 of 11 rows of .*b.csv' has a label that is not among the 2 known ones: 'maybe' .row 11.",
        train,
        test_data=test,
    )


# --- test set and subset


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_fraction": 0.0}, "test-fraction is 0.0"),
        ({"test_fraction": 1.0}, "test-fraction is 1.0"),
        ({"test_fraction": float("nan")}, "test-fraction is nan"),
        ({"test_fraction": 0.2}, "has its own test set"),
        ({"test_fraction": 0.2, "test_data": "x.csv"}, "exclude each other"),
        ({"max_examples": 0}, "max-examples is 0"),
        ({"max_examples": 29}, "give at least 30"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    refused(message, "helpdesk", ConfigError, **options)


def test_test_data_takes_the_place_of_the_own_test_set(tmp_path: Path) -> None:
    rows = [{"text": "hello", "intent": "refund"}, {"text": "bye", "intent": "account_locked"}]
    names = load_data().label_names
    rows = [{**row, "intent": name} for row, name in zip(rows, names[:2], strict=True)]
    assert load_data(test_data=write(tmp_path / "own.csv", rows)).test.texts == ("hello", "bye")


def test_a_class_with_one_example_trains_on_it(tmp_path: Path) -> None:
    refused("leaves none for testing", write(tmp_path / "mine.csv", ROWS[:2]), test_fraction=0.5)


def test_the_same_seed_gives_the_same_data(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.csv", [{"text": f"t{i}", "label": i % 3} for i in range(60)])
    prints = [load_data(path, max_examples=9, seed=seed).fingerprint() for seed in (1, 1, 2)]
    assert prints[0] == prints[1] != prints[2]
    assert re.fullmatch("[0-9a-f]{64}", prints[0])


def test_the_fingerprint_sees_every_part(tmp_path: Path) -> None:
    rows: list[Row] = [{"text": f"t{i}", "label": i % 3, "user": f"u{i % 2}"} for i in range(30)]
    path = write(tmp_path / "mine.csv", rows)
    plain, users = load_data(path), load_data(path, client_column="user")
    relabelled = load_data(write(tmp_path / "b.csv", [{**row, "label": row["label"] + 1} for row in rows]))
    assert len({plain.fingerprint(), users.fingerprint(), relabelled.fingerprint()}) == 3
    assert load_data(write(tmp_path / "moved.csv", rows)).fingerprint() == plain.fingerprint()


# --- the data set of the package


def folded(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def test_helpdesk_is_balanced_and_clean() -> None:
    data = load_data()
    assert data.name == "helpdesk"
    assert len(data.label_names) == 30
    assert np.bincount(data.train.labels).tolist() == [50] * 30
    assert np.bincount(data.test.labels).tolist() == [15] * 30
    texts = [folded(text) for text in data.train.texts + data.test.texts]
    assert [text for text, count in Counter(texts).items() if count > 1] == []


# --- 20 Newsgroups


def test_articles_that_are_stripped_already_stay_as_they_are(tmp_path: Path) -> None:
    rows = [{"text": f"One {group}.\n\nTwo.", "label_text": group} for group in sorted(GROUPS) for _ in range(3)]
    rows[0]["text"] = ""
    data = load_data(write(tmp_path / "mine.jsonl", rows), test_fraction=0.3)
    assert set(pairs(data)) == {(row["text"], row["label_text"]) for row in rows}
    assert not is_raw(data.train.texts)


# --- the other real data sets


def test_banking77_loads_as_it_is(shared: Path) -> None:
    data = load_data(str(shared / "data" / "banking77"))
    assert (data.name, len(data.train), len(data.test), len(data.label_names)) == ("banking77", 10_003, 3_080, 77)
    assert sum("\n" in text for text in data.train.texts + data.test.texts) == 13
    sizes = np.bincount(data.train.labels)
    some = np.bincount(load_data(str(shared / "data" / "banking77"), max_examples=3_080).train.labels)
    assert some.sum() == 3_080
    assert (some[sizes < 40] == sizes[sizes < 40]).all()
    assert set(some[sizes >= 40].tolist()) <= {40, 41}


def test_tweets_of_users(shared: Path) -> None:
    data = load_data(str(shared / "data" / "airline_by_user" / "tweets.jsonl.gz"), client_column="user")
    assert data.name == "tweets"
    assert data.label_names == ("negative", "neutral", "positive")
    assert len(data.train) + len(data.test) == 14_485
    assert abs(len(data.test) - 2_897) <= 1
    assert data.train.clients is not None and data.test.clients is not None
    assert len(set(data.train.clients + data.test.clients)) == 7_701


# --- the hub, without a network


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stands in for the hub: `answer(repo, config, revision)` gives what `datasets.load_dataset` would."""
    stand_in = SimpleNamespace(answer=None, asked=[], offline=[])
    real = datasets.load_dataset

    def load_dataset(path: str, *args: Any, **options: Any) -> Any:
        if "data_files" in options:
            return real(path, *args, **options)
        stand_in.asked.append((path, *args, options.get("revision")))
        stand_in.offline.append(datasets.config.HF_HUB_OFFLINE)
        return stand_in.answer()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *args, **options: None)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    return stand_in


def hub_rows(rows: list[Row]) -> datasets.Dataset:
    return datasets.Dataset.from_list(rows)


def test_hub_ids_with_and_without_a_configuration(hub: SimpleNamespace) -> None:
    hub.answer = lambda: datasets.DatasetDict(train=hub_rows(ROWS), validation=hub_rows(ROWS[:2]))
    data = load_data("owner/name:config")
    assert (data.name, len(data.train), len(data.test)) == ("owner/name:config", 10, 2)
    assert len(load_data("owner/name").train) == 10
    assert [asked[:2] for asked in hub.asked] == [("owner/name", "config"), ("owner/name", None)]


def test_built_in_names_on_the_hub(hub: SimpleNamespace) -> None:
    hub.answer = lambda: datasets.DatasetDict(train=hub_rows(ROWS))
    assert load_data("banking77").name == "banking77"
    assert load_data("20newsgroups").name == "20newsgroups"
    assert [asked[0] for asked in hub.asked] == ["mteb/banking77", "SetFit/20_newsgroups"]


def test_hub_data_without_a_train_split(hub: SimpleNamespace) -> None:
    hub.answer = lambda: datasets.DatasetDict(test=hub_rows(ROWS))
    refused("has no train split, only test", "owner/name")


def test_a_hub_that_cannot_be_reached(hub: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **options: Any) -> Any:
        raise ConnectionError("Couldn't reach the Hub\nand more lines")

    hub.answer = fails
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", fails)
    refused(r"'mteb/banking77' cannot be loaded .*Couldn't reach the Hub\).*path of a local file", "banking77")
    assert hub.offline == [True], "no retries: straight to the cache"
    assert datasets.config.HF_HUB_OFFLINE is False
