"""Data that the user holds in Python: the same examples, checks and one-line errors as from files."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_sources import ROWS, Row, write

import lora_a2
from federation import LABELS, save_model, tiny_model
from lora_a2.data.labelled import LabelledData
from lora_a2.data.options import DataKeywords, DataOptions
from lora_a2.data.sources import load_data, load_examples
from lora_a2.errors import ConfigError, DataError

FRAME = pd.DataFrame(ROWS)


def expect(message: str, data: Any, error: type[Exception] = DataError, **options: Any) -> None:
    with pytest.raises(error, match=message) as caught:
        load_data(data, **options)
    assert "\n" not in str(caught.value)


def same(one: LabelledData, other: LabelledData) -> bool:
    parts = [(one.train, other.train), (one.test, other.test)]
    return (
        one.fingerprint() == other.fingerprint()
        and one.label_names == other.label_names
        and all(a.texts == b.texts and a.clients == b.clients for a, b in parts)
        and all(a.labels.dtype == b.labels.dtype and (a.labels == b.labels).all() for a, b in parts)
    )


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\r\x00"), min_size=1, max_size=8).map(
    lambda t: f"x{t}"
)
TABLES = st.lists(
    st.fixed_dictionaries({"text": TEXTS, "label": st.sampled_from(["no", "yes", "7"])}), min_size=1, max_size=12
)
OPTIONS = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 3),
        "validation_fraction": st.sampled_from([None, 0.3]),
        "max_examples": st.sampled_from([None, 8]),
    }
)
"""Settings under which every kind of data has to be subdivided alike."""


def whole(rows: list[Row]) -> list[Row]:
    """With enough of each class to hold some out."""
    return rows + [{"text": f"more {k}", "label": label} for k in range(4) for label in ("no", "yes")]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=TABLES.map(whole), options=OPTIONS)
def test_the_same_rows_are_the_same_data(tmp_path: Path, rows: list[Row], options: dict[str, Any]) -> None:
    """A csv file, a jsonl file, its path, a DataFrame, a Dataset, and a DatasetDict."""
    path = tmp_path / "mine.csv"
    expected = load_data(write(path, rows), **options)
    frame = pd.DataFrame(rows, index=range(7, 7 + len(rows)))
    table = datasets.Dataset.from_list(rows)
    forms = [
        *(path, write(tmp_path / "mine.jsonl", rows)),
        *(frame, frame.astype({"label": "category"}), frame.astype(object), frame.astype("string")),
        *(table, datasets.DatasetDict(train=table), table.with_format("numpy"), datasets.Dataset.from_pandas(frame)),
    ]
    for form in forms:
        assert same(load_data(form, **options), expected), type(form)
        assert same(load_data(form, DataOptions(**options)), expected)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.dictionaries(
        st.text(st.characters(codec="utf-8", categories=("L", "N")), min_size=1, max_size=4).map(lambda t: f"c{t}"),
        TABLES.map(whole),
        min_size=1,
        max_size=4,
    )
)
def test_a_mapping_is_a_table_with_a_column_of_clients(tmp_path: Path, parts: dict[str, list[Row]]) -> None:
    """Held out or given apart, the test set is the same too."""
    rows = [{**row, "shop": name} for name, part in parts.items() for row in part]
    tables = {name: datasets.Dataset.from_list(part) for name, part in parts.items()}
    frames = {name: pd.DataFrame(part) for name, part in parts.items()}
    path = write(tmp_path / "mine.csv", rows)
    expected = load_data(path, client_column="shop")
    assert all(same(load_data(form), expected) for form in (tables, frames))
    assert set(expected.train.clients or ()) == set(parts)
    apart = load_data(path, client_column="shop", test_data=path)
    both = {name: datasets.DatasetDict(train=t, validation=t) for name, t in tables.items()}
    assert all(same(found, apart) for found in (load_data(both), load_data(tables, test_data=frames)))


def test_splits_are_those_of_the_hub() -> None:
    """Test, or else validation; one without labels gives way to the next, with a note."""
    train, some, two = (datasets.Dataset.from_list(rows) for rows in (ROWS, ROWS[:4], ROWS[:2]))
    assert len(load_data(datasets.DatasetDict(train=train, validation=two, test=some)).test) == 4
    assert len(load_data(datasets.DatasetDict(train=train, validation=two)).test) == 2
    labels = datasets.ClassLabel(names=["no", "yes"])
    features = datasets.Features({"text": datasets.Value("string"), "label": labels})
    coded = [{**row, "label": int(row["label"] == "yes")} for row in ROWS]
    secret = datasets.Dataset.from_list([{**row, "label": -1} for row in coded[:4]], features=features)
    known = datasets.Dataset.from_list(coded, features=features)
    data = load_data(datasets.DatasetDict(train=known, validation=known, test=secret))
    assert (len(data.test), data.label_names) == (10, ("no", "yes"))
    assert data.notes[:1] == (
        "The DatasetDict (test split) has no labels; the DatasetDict (validation split) is the test set instead.",
    )
    expect("4 of 4 rows of the Dataset have no label in column 'label' .row 1, row 2, row 3 and 1 more.", secret)
    expect("The DatasetDict has no train split, only test", datasets.DatasetDict(test=train))
    expect(
        "The DatasetDict has its own test set",
        datasets.DatasetDict(train=train, test=two),
        ConfigError,
        test_fraction=0.5,
    )


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0, 1] * 3, ("0", "1")),
        ([0.0, 1.0] * 3, ("0", "1")),
        (np.array([10, 9] * 3, np.int8), ("9", "10")),
        (pd.Categorical(["b", "a"] * 3, categories=["c", "b", "a"]), ("a", "b")),
        ([True, False] * 3, ("False", "True")),
        (pd.array([0, 1] * 3, dtype="Int64"), ("0", "1")),
        (np.array([np.int64(2), "x"] * 3, object), ("2", "x")),
    ],
)
def test_labels_of_every_column_type(labels: Any, expected: tuple[str, ...]) -> None:
    data = load_data(pd.DataFrame({"text": list("abcdef"), "label": labels}))
    assert data.label_names == expected


@pytest.mark.parametrize("lacking", [None, np.nan, pd.NA, pd.NaT], ids=["None", "nan", "NA", "NaT"])
def test_missing_values_of_every_kind(lacking: Any) -> None:
    texts = pd.DataFrame({"text": ["a", lacking, "c"], "label": ["x", "y", "x"]})
    expect(
        "^Row 2 of the DataFrame has no text in column 'text'; fill it, remove the row, or leave it out with --on-missing drop.$",
        texts,
    )
    labels = pd.DataFrame({"text": ["a", "b", "c"], "label": pd.Series(["x", "y", lacking], dtype=object)})
    expect("^Row 3 of the DataFrame has no label in column 'label'", labels)
    expect("^Row 3 of the DataFrame has no label", labels.astype({"label": "category"}))
    expect("^Row 2 of the DataFrame of client 'b' has no text", {"a": FRAME, "b": texts})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pd.DataFrame({"text": [1, 2], "label": ["x", "y"]}), "holds a int in column 'text', not a text"),
        (pd.DataFrame({"text": ["a", " "], "label": ["x", "y"]}), "Row 2 of the DataFrame has no text"),
        (pd.DataFrame({"text": ["a", "b"], "label": [0.5, 1]}), "holds 0.5 in column 'label'"),
        (pd.DataFrame({"text": ["a", "\ud800"], "label": ["x", "y"]}, dtype=object), "Row 2 .* half of a character"),
        (pd.DataFrame({"text": ["a", "b"], "label": ["x", "x"]}), "All examples of the DataFrame have the label 'x'"),
        (pd.DataFrame({"text": [], "label": []}), "The DataFrame has no rows"),
        (pd.DataFrame([["a", "b"]]), "label cannot be told from its columns '0', '1'"),
        (pd.DataFrame([["a", "b"]], columns=["text", "text"]), "column name occurs twice among those of the DataFrame"),
        (pd.DataFrame(), "label cannot be told"),
        (datasets.Dataset.from_list(ROWS).to_iterable_dataset(), "IterableDataset gives its rows one by one"),
        ([{"text": "a", "label": "x"}], "The data are a list: give a name, a path, a datasets.Dataset"),
        ({}, "The mapping has no client"),
        ({"a": {"b": FRAME}}, "The data of client 'a' are a dict: give a datasets.Dataset"),
        ({1: FRAME}, "client's name must be a text without blanks around it, not 1"),
        ({" a": FRAME}, "not ' a'; rename it"),
        ({"train": FRAME, "test": FRAME}, "look like splits"),
        (
            {"a": FRAME, "b": FRAME.rename(columns={"label": "lable"})},
            "The DataFrame of client 'b' has no column 'label'.*mean",
        ),
        (
            {"a": datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)), "b": datasets.DatasetDict()},
            "The DatasetDict of client 'b' has no train split",
        ),
        (
            {"a": FRAME, "b": datasets.DatasetDict(dict.fromkeys(("train", "test"), datasets.Dataset.from_list(ROWS)))},
            "Client 'a' has no test split, and others have one",
        ),
        (Path("no-such.csv"), "There is no data set '/.*no-such.csv'"),
    ],
)
def test_what_cannot_be_used(data: Any, message: str) -> None:
    expect(message, data)


def test_options_that_do_not_fit() -> None:
    expect("the keys of the mapping are the clients", {"a": FRAME}, ConfigError, client_column="label")
    expect("training set is a mapping from clients and the test", {"a": FRAME}, ConfigError, test_data=FRAME)
    both = datasets.DatasetDict(dict.fromkeys(("train", "test"), datasets.Dataset.from_list(ROWS)))
    expect("test-data is the DatasetDict, which has several splits", FRAME, test_data=both)
    expect(
        "1 of 2 rows of the DataFrame has a label .* 'maybe' .row 1.",
        FRAME,
        test_data=FRAME[:2].replace("yes", "maybe"),
    )
    with pytest.raises(TypeError, match="max_exmaples"):
        load_data(FRAME, max_exmaples=3)  # type: ignore[call-arg]


def test_the_user_s_objects_stay_as_they_are() -> None:
    frame, table = FRAME.astype({"label": "category"}), datasets.Dataset.from_list(ROWS).with_format("numpy")
    before = frame.copy(deep=True), table.format
    load_data({"a": frame, "b": table})
    pd.testing.assert_frame_equal(frame, before[0])
    assert table.format == before[1]


def test_keywords_are_the_fields() -> None:
    """One list for type checkers and one for Python: the same names and types, and each changes its field."""
    written = {name: value.__forward_arg__ for name, value in DataKeywords.__annotations__.items()}
    assert written == {field.name: field.type for field in fields(DataOptions)}
    frame = FRAME.rename(columns={"text": "subject"})
    usual = DataOptions(text_column="nothing", seed=3)
    assert same(load_data(frame, usual, text_column="subject"), load_data(frame, replace(usual, text_column="subject")))


def test_examples_of_a_finished_model_too() -> None:
    found = load_examples({"a": FRAME, "b": FRAME}, ("no", "yes"))
    assert found.clients == ("a",) * 10 + ("b",) * 10


# --- clients


def shops(sizes: dict[str, int]) -> dict[str, pd.DataFrame]:
    return {
        name: pd.DataFrame(
            {"text": [f"w{3 + i % 9} w{5 + i % 7}" for i in range(size)], "label": [LABELS[i % 3] for i in range(size)]}
        )
        for name, size in sizes.items()
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> lora_a2.Model:
    return lora_a2.load_model(str(save_model(tmp_path_factory.mktemp("model"))), labels=LABELS, dtype="float32")


def test_the_clients_of_a_mapping_are_its_keys(model: lora_a2.Model) -> None:
    own = shops({"north": 6, "south": 15, "east": 9})
    options = DataOptions(label_names=LABELS)
    for data in (own, load_data(own, options)):
        clients = lora_a2.make_clients(data, model)
        assert [(c.id, c.name) for c in clients] == [(0, "south"), (1, "east"), (2, "north")]
        assert [len(c.train) + len(c.test) for c in clients] == [15, 9, 6]
    assert [c.name for c in lora_a2.make_clients(own, model, num_clients=1)] == ["south"]
    mixed = lora_a2.make_clients(own, model, partitioner="iid", num_clients=2)
    assert [c.name for c in mixed] == ["client-0", "client-1"]


def test_clients_of_one_table(model: lora_a2.Model) -> None:
    frame = pd.concat(shops({"all": 60}).values())
    direct = lora_a2.make_clients(frame, model, seed=4, alpha=5)
    read = lora_a2.make_clients(load_data(frame, label_names=LABELS, seed=4), model, seed=4, alpha=5)
    assert len(direct) == 10
    for one, other in zip(direct, read, strict=True):
        assert all((a == b).all() for a, b in zip(one.train.input_ids, other.train.input_ids, strict=True))
        assert (one.train.labels == other.train.labels).all()
    column = frame.assign(shop=["a", "b"] * 30)
    natural = lora_a2.make_clients(column, model, options=DataOptions(client_column="shop"))
    assert [c.name for c in natural] == ["a", "b"]


def test_clients_whose_labels_are_not_the_model_s() -> None:
    frame = next(iter(shops({"all": 12}).values()))
    data = load_data(frame)  # in the order of their names, which is not the model's
    with pytest.raises(
        ConfigError, match=r"the DataFrame has the labels 'broken', 'late', 'lost', and the model 'late'"
    ):
        lora_a2.make_clients(data, tiny_model())
    with pytest.raises(ConfigError, match="these are read already"):
        lora_a2.make_clients(data, tiny_model(), options=DataOptions())
    with pytest.raises(DataError, match=r"4 of 12 rows .* not among the 3 known ones: 'other'"):
        lora_a2.make_clients(frame.replace("late", "other"), tiny_model())
