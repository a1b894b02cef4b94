"""Chats and texts from files and from memory; what is no valid example is named in one line, with its row."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sources import WRITERS, Row, write

from lora_a2.data.chats import find_task
from lora_a2.data.messages import read_chat
from lora_a2.data.writing import WrittenOptions, load_samples, load_written
from lora_a2.data.written import Sample, Samples, Turn, WrittenData
from lora_a2.errors import ConfigError, DataError

MESSAGES = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "How long?"},
    {"role": "assistant", "content": "Four days."},
]
CHAT = tuple(Turn(m["role"], m["content"]) for m in MESSAGES)
WORDS = ["NA", "007", "two\nlines, one comma", 'a "quoted" word', "naïve café 😡", " spaces ", "null", "1e5"]
PAIRS: list[Row] = [{"prompt": f"say {word}", "completion": word} for word in WORDS]
MAKERS: dict[str, Any] = {
    "Dataset": datasets.Dataset.from_list,
    "DataFrame": pd.DataFrame,
    "Parquet frame": lambda rows: datasets.Dataset.from_list(rows).with_format("numpy").to_pandas(),
}


def pair(prompt: str, completion: str, *references: str) -> Sample:
    return Sample((Turn("user", prompt), Turn("assistant", completion)), references=references)


def counted(data: WrittenData) -> Counter[Sample]:
    return Counter((*data.train.samples, *data.test.samples))


def rows_of(rows: list[Row], **options: Any) -> tuple[Sample, ...]:
    """The examples of a table in memory, in order."""
    return load_samples(datasets.Dataset.from_list(rows), WrittenOptions(**options)).samples


def expect(message: str, data: Any, error: type[Exception] = DataError, **options: Any) -> None:
    with pytest.raises(error, match=message) as caught:
        load_written(data, WrittenOptions(**options))
    assert "\n" not in str(caught.value)


def expect_row(message: str, value: object) -> None:
    """A chat, in the second row, is refused."""
    with pytest.raises(DataError, match=message) as caught:
        read_chat(value, "Row 2 of the table")
    assert str(caught.value).startswith("Row 2 of the table") and "\n" not in str(caught.value)


# --- columns


@pytest.mark.parametrize("ending", [*WRITERS, *(ending + ".gz" for ending in WRITERS)])
def test_every_format_gives_prompts_and_answers_as_written(tmp_path: Path, ending: str) -> None:
    data = load_written(write(tmp_path / f"mine{ending}", PAIRS))
    assert data.name == "mine"
    assert counted(data) == Counter(pair(f"say {word}", word) for word in WORDS)
    assert len(data.test) in (1, 2) and data.train.clients is None and data.notes == ()


@pytest.mark.parametrize("ending", WRITERS)
def test_every_format_holds_chats(tmp_path: Path, ending: str) -> None:
    """In tables of texts they are JSON."""
    as_text = ending in (".csv", ".tsv")
    rows = [{"messages": json.dumps(MESSAGES) if as_text else MESSAGES, "id": "1"}]
    assert load_samples(write(tmp_path / f"mine{ending}", rows)).samples == (Sample(CHAT),)


@pytest.mark.parametrize("kind", MAKERS)
def test_objects_hold_chats_and_lists_of_answers(kind: str) -> None:
    made = MAKERS[kind]
    assert load_samples(made([{"messages": MESSAGES}])).samples == (Sample(CHAT),)
    rows = [{"input": "name[A]", "references": ["A is here.", "Here is A."]}]
    found = load_samples(made(rows), WrittenOptions(prompt_column="input", completion_column="references"))
    assert found.samples == (pair("name[A]", "A is here.", "Here is A."),)


def test_a_struct_of_lists_is_a_chat_too() -> None:
    columns = {key: [message[key] for message in MESSAGES] for key in ("role", "content")}
    assert read_chat(columns, "Row 1") == CHAT
    assert read_chat({key: np.array(values, object) for key, values in columns.items()}, "Row 1") == CHAT


def test_sharegpt_names_sides_otherwise() -> None:
    rows = [{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}]
    assert rows_of(rows) == (pair("a", "b"),)
    assert read_chat([{"role": "User", "content": "a"}, {"role": "ASSISTANT", "content": "b"}], "Row 1") == (
        Turn("user", "a"),
        Turn("assistant", "b"),
    )


def test_a_content_may_be_parts_of_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert read_chat([{"role": "assistant", "content": parts}], "Row 1") == (Turn("assistant", "ab"),)
    image = [{"type": "image", "url": "a"}, {"type": "text", "text": "b"}]
    expect_row("message 1, has a content that is no text", [{"role": "assistant", "content": image}])


def test_an_instruction_may_have_an_input() -> None:
    rows = [
        {"instruction": "Add.", "input": "1 and 2", "output": "3"},
        {"instruction": "Greet.", "input": "", "output": "Hello."},
        {"instruction": "Part.", "input": None, "output": "Bye."},
    ]
    expected = (pair("Add.\n\n1 and 2", "3"), pair("Greet.", "Hello."), pair("Part.", "Bye."))
    assert rows_of(rows) == expected
    assert rows_of(rows, prompt_column="instruction") == expected
    assert rows_of(rows, prompt_column="instruction", completion_column="output") == expected
    assert rows_of(rows[:1], prompt_column="input", completion_column="output") == (pair("1 and 2", "3"),)
    expect("Row 1 of .* has a int, not a text, in column 'input'", pd.DataFrame([{**rows[0], "input": 7}]))


def test_any_column_may_have_any_name() -> None:
    row = {"a": "ask", "b": "answer", "c": MESSAGES, "d": "plain", "e": ["other"], "f": 7}
    assert rows_of([row], prompt_column="a", completion_column="b") == (pair("ask", "answer"),)
    assert rows_of([row], prompt_column="a", completion_column="b", references_column="e") == (
        pair("ask", "answer", "other"),
    )
    assert rows_of([row], messages_column="c") == (Sample(CHAT),)
    assert rows_of([row], text_column="d") == (Sample(text="plain"),)
    found = load_samples(datasets.Dataset.from_list([row]), WrittenOptions(text_column="d", client_column="f"))
    assert found.clients == ("7",)


def test_answers_may_be_several_and_the_first_is_learnt() -> None:
    rows = [{"prompt": "a", "completion": ["one", "two"], "references": ["three"]}]
    assert rows_of(rows) == (pair("a", "one", "two", "three"),)


@pytest.mark.parametrize(
    ("names", "task"),
    [
        (("text", "label"), "classification"),
        (("id", "Text", "Category", "user"), "classification"),
        (("prompt", "completion"), "causal-lm"),
        (("instruction", "input", "output"), "causal-lm"),
        (("messages",), "causal-lm"),
        (("id", "conversations"), "causal-lm"),
        (("input", "references"), "causal-lm"),
        (("question", "answer"), "causal-lm"),
        (("question", "label"), "classification"),
        (("text",), None),
        (("text", "user"), None),
        (("x", "y"), None),
        ((), None),
    ],
)
def test_columns_tell_the_task_where_it_is_clear(names: tuple[str, ...], task: str | None) -> None:
    assert find_task(names) == task


# --- mistakes


def test_a_missing_column_is_named_with_the_nearest() -> None:
    table = datasets.Dataset.from_list(PAIRS)
    expect(
        "no column 'promt'; its columns are 'prompt', 'completion'. Did you mean 'prompt'", table, prompt_column="promt"
    )
    expect("no column 'refs'", table, references_column="refs")
    expect("cannot be told from its columns 'x'; name them with", pd.DataFrame({"x": ["a"]}))
    expect("no usual column of answers", pd.DataFrame({"x": ["a"]}), prompt_column="x")
    expect("no usual column of prompts", pd.DataFrame({"x": ["a"]}), completion_column="x")


@pytest.mark.parametrize(
    "named",
    [
        ("messages", "text"),
        ("messages", "prompt"),
        ("text", "completion"),
        ("messages", "completion"),
        ("text", "prompt"),
    ],
)
def test_ways_to_hold_examples_exclude_each_other(named: tuple[str, str]) -> None:
    table = pd.DataFrame({name: ["a"] for name in named})
    expect("exclude each other", table, **{f"{name}_column": name for name in named})


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, "holds nothing, no chat"),
        ("hello", "holds the str 'hello', no chat"),
        ('[{"role": ', "as JSON that cannot be read"),
        ("[" * 100_000, "as JSON that cannot be read"),
        (7, "no chat"),
        ({"role": "user", "content": "a"}, "no chat"),
        ([], "a chat without messages"),
        (["a"], "message 1, is the str 'a'"),
        ([{"content": "a"}], "message 1, has the keys content: expected role and content"),
        ([{}], "message 1, has the keys of nothing"),
        ([{"role": None, "content": "a"}], "message 1, has nothing for a role"),
        ([{"role": " ", "content": "a"}], "for a role"),
        ([{"role": "assistant", "content": None}], "a content that is no text, but nothing"),
        ([{"role": "assistant", "content": " \n"}], "the assistant says nothing"),
        ([MESSAGES[1]], "no turn of the assistant, .* but only of user"),
        ([*MESSAGES, {"role": "tool", "content": "a", "tool_call_id": "1"}], "message 4, has 'tool_call_id'"),
        ([{"role": "assistant", "content": "a", "tool_calls": [{"name": "f"}]}], "has 'tool_calls', which is not understood"),
        ([{"role": "assistant", "content": "a", "weight": 0}], "has 'weight'"),
        ([{"role": "assistant", "content": "a", "name": "Ann"}], "has 'name'"),
    ],
)  # fmt: skip
def test_what_is_no_chat_is_refused(value: object, says: str) -> None:
    expect_row(says, value)


def test_keys_that_say_nothing_are_let_through() -> None:
    message = {"role": "assistant", "content": "a", "tool_calls": None, "name": "", "weight": 1, "id": "x", "tools": []}
    assert read_chat([message], "Row 1") == (Turn("assistant", "a"),)


@pytest.mark.parametrize("answer", ["", " \n", None, [], [""]])
def test_an_empty_answer_is_refused_with_its_row(answer: object) -> None:
    wanted = ["ok"] if isinstance(answer, list) else "ok"
    expect("Row 2 of the DataFrame has no answer", pd.DataFrame({"prompt": ["a", "b"], "completion": [wanted, answer]}))


def test_an_empty_prompt_or_text_is_refused_with_its_row() -> None:
    expect("Row 2 of the DataFrame has no text", pd.DataFrame({"text": ["a", " "]}))
    expect(
        "Row 1 of the DataFrame has no prompt in column 'prompt'", pd.DataFrame({"prompt": [None], "completion": ["a"]})
    )
    expect("holds 7 in column 'completion'", pd.DataFrame({"prompt": ["a"], "completion": [7]}))
    chats = pd.DataFrame({"prompt": [MESSAGES], "completion": ["a"]})
    expect("has a list, not a text, .* --messages-column", chats)


def test_a_table_without_rows_is_refused(tmp_path: Path) -> None:
    expect("no rows to train on", datasets.Dataset.from_dict({"prompt": [], "completion": []}))


def test_an_unanswered_end_is_told() -> None:
    asked = [*MESSAGES, {"role": "user", "content": "And in winter?"}]
    chats = [MESSAGES, [*MESSAGES, *MESSAGES], [MESSAGES[0], *MESSAGES], asked, [*MESSAGES, *asked]]
    data = load_written(datasets.Dataset.from_list([{"messages": chat} for chat in chats]))
    assert data.notes == ("2 chats end with a turn that nobody answers in the Dataset: it is left out.",)


# --- training and test set


def test_a_folder_and_its_test_set(tmp_path: Path) -> None:
    write(tmp_path / "mine" / "train.jsonl", PAIRS)
    write(tmp_path / "mine" / "test.jsonl", [{"prompt": "a", "completion": ["b", "c"]}])
    data = load_written(str(tmp_path / "mine"))
    assert data.test.samples == (pair("a", "b", "c"),)
    assert data.train.samples == tuple(pair(row["prompt"], row["completion"]) for row in PAIRS)
    expect("has its own test set, so test-fraction 0.5", str(tmp_path / "mine"), ConfigError, test_fraction=0.5)
    assert load_samples(str(tmp_path / "mine")) == data.test
    assert load_samples(str(tmp_path / "mine"), training=True) == data.train


def test_references_may_be_in_the_test_set_alone() -> None:
    both = datasets.DatasetDict(
        train=datasets.Dataset.from_list(PAIRS),
        test=datasets.Dataset.from_list([{"prompt": "a", "completion": "b", "others": ["c", "d"]}]),
    )
    assert load_written(both, WrittenOptions(references_column="others")).test.samples == (pair("a", "b", "c", "d"),)


def test_references_that_the_test_set_lacks_are_missed() -> None:
    both = datasets.DatasetDict(
        train=datasets.Dataset.from_list([{**row, "others": ["c"]} for row in PAIRS]),
        test=datasets.Dataset.from_list(PAIRS),
    )
    expect(r"DatasetDict \(test split\) has no column 'others'", both, references_column="others")


def test_a_mapping_says_whose_each_is() -> None:
    parts = {name: pd.DataFrame(PAIRS[i::2]) for i, name in enumerate(("ann", "bob"))}
    data = load_written(parts, WrittenOptions(test_fraction=0.5))
    assert Counter([*(data.train.clients or ()), *(data.test.clients or ())]) == {"ann": 4, "bob": 4}
    expect("the keys of the mapping are the clients", parts, ConfigError, client_column="prompt")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"test_fraction": 0.0}, "test-fraction is 0.0"),
        ({"validation_fraction": 1.0}, "validation-fraction is 1.0"),
        ({"max_examples": 0}, "max-examples is 0"),
        ({"max_test_examples": -1}, "max-test-examples is -1"),
        ({"test_data": "a.csv", "test_fraction": 0.5}, "exclude each other"),
    ],
)
def test_options_have_ranges(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        WrittenOptions(**options)


@settings(max_examples=25, deadline=None)
@given(
    size=st.integers(10, 40),
    fraction=st.sampled_from([0.2, 0.5]),
    validation=st.sampled_from([None, 0.3]),
    most=st.sampled_from([None, 1, 7]),
    seed=st.integers(0, 3),
)
def test_parts_are_disjoint_seeded_and_in_order(
    size: int, fraction: float, validation: float | None, most: int | None, seed: int
) -> None:
    table = datasets.Dataset.from_list([{"prompt": f"{i:03}", "completion": "x"} for i in range(size)])
    options = WrittenOptions(
        test_fraction=fraction, validation_fraction=validation, max_examples=most, max_test_examples=most, seed=seed
    )
    data, again = load_written(table, options), load_written(table, options)
    assert data.fingerprint() == again.fingerprint() and data == again
    numbers = [[int(sample.turns[0].content) for sample in part.samples] for part in (data.train, data.test)]
    assert all(part == sorted(part) and part for part in numbers)
    assert not set(numbers[0]) & set(numbers[1])
    if most is not None:
        assert len(numbers[0]) <= most and len(numbers[1]) <= most
    elif validation is None:
        assert abs(len(numbers[1]) - fraction * size) <= 1 and len(numbers[0]) + len(numbers[1]) == size


def test_the_fingerprint_covers_everything_and_not_the_name() -> None:
    train = Samples((pair("a", "b", "c"), Sample(text="d")), ("x", "y"))
    data = WrittenData("one", train, Samples((pair("e", "f"),)))
    assert data.fingerprint() == WrittenData("two", train, data.test, ("told",)).fingerprint()
    others = [
        Samples((pair("a", "b"), Sample(text="d")), ("x", "y")),
        Samples((pair("a", "b", "c"), Sample(text="D")), ("x", "y")),
        Samples((pair("a", "b", "c"), Sample(text="d")), ("x", "z")),
        Samples((pair("a", "b", "c"), Sample(text="d"))),
        train.take(np.array([1, 0])),
        train.take(np.array([0])),
    ]
    prints = {WrittenData("one", other, data.test).fingerprint() for other in others} | {data.fingerprint()}
    assert len(prints) == len(others) + 1
