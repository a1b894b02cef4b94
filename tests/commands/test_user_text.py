"""What users' files hold is text and nothing else: no markup, no formula, no path, no number cut short, no crash."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.table import Table

from lora_a2.cli import main
from lora_a2.config.run import RunConfig
from lora_a2.data import finding, tables
from lora_a2.data.sources import load_data
from lora_a2.data.tables import read_table
from lora_a2.display.console import PlainConsole, print_table
from lora_a2.errors import ConfigError, DataError
from lora_a2.federation.observer import Observer
from lora_a2.runs.jobs import launch, resume
from lora_a2.runs.measuring import evaluate_run
from lora_a2.runs.predict import load_predictor
from lora_a2.studies.experiment import parse_experiment
from lora_a2.studies.results import harmless

NAMES = ["[/b]", "[red]x[/red]", "[link=http://x]y", ":smile:", "a[0]", "[bold", "ünï", "=1+1"]


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", NAMES)
def test_names_are_printed_as_they_are(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"text": f"box {i}", "label": f"{name} {i % 2}", "shop": f"{name}{i % 3}"} for i in range(30)]
    data = jsonl(tmp_path / "data.jsonl", rows)
    assert main(["partition", "--data", str(data), "--client-column", "shop"]) == 0
    printed = capsys.readouterr().out
    assert all(f"{name}{k}" in printed for k in range(3))
    assert f"{name} 0 (" in printed or f"{name} 1 (" in printed


def test_control_characters_are_shown_on_every_way_to_the_screen() -> None:
    console = PlainConsole(file=io.StringIO(), width=200)
    nasty = "a\x1b[2Jb\rc\x07d\u202ee\nf"
    table = Table(nasty)
    table.add_row(nasty)
    console.print(table)
    print_table([(nasty, nasty)], console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert not set(printed) & {"\x1b", "\r", "\x07", "\u202e"}
    assert printed.count("\\x1b[2Jb\\rc\\x07d\\u202ee\\nf") == 4


def test_a_terminal_that_has_only_ascii(tmp_path: Path) -> None:
    rows = [{"text": f"box {i}", "label": ["größe", "b"][i % 2]} for i in range(12)]
    data = jsonl(tmp_path / "data.jsonl", rows)
    command = [sys.executable, "-c", "import sys; from lora_a2.cli import main; sys.exit(main())"]
    done = subprocess.run(
        [*command, "partition", "--data", str(data), "--num-clients", "2"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"gr\\xf6\\xdfe" in done.stdout


BIG = [2**53 + 1, 2**63 + 1, 2**63 + 2, 2**64 - 1]


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet", "csv"])
def test_whole_numbers_keep_their_digits(ending: str, tmp_path: Path) -> None:
    rows = [{"text": f"box {i}", "label": i % 2, "user": BIG[i % 4]} for i in range(24)]
    path = tmp_path / f"data.{ending}"
    if ending == "parquet":
        pd.DataFrame(rows).astype({"user": "uint64"}).to_parquet(path)
    elif ending == "csv":
        pd.DataFrame(rows).astype({"user": "uint64"}).to_csv(path, index=False)
    elif ending == "json":
        path.write_text(json.dumps(rows))
    else:
        jsonl(path, rows)
    data = load_data(str(path), client_column="user")
    assert set(data.train.clients or ()) == {str(number) for number in BIG}
    assert data.label_names == ("0", "1")


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ('{"a": 1}\n\n{"b": 2}\n', [(1, None), (None, 2)]),
        ('[{"a": 1}, {"b": 2}]', [(1, None), (None, 2)]),
        ('{"a": [1, 2], "b": [3, 4]}', [(1, 3), (2, 4)]),
        ('{\n "a": [1],\n "b": [2]\n}', [(1, 2)]),
        ('\ufeff{"a": 1, "b": 2}', [(1, 2)]),
    ],
)
def test_json_in_its_forms(content: str, rows: list[tuple[Any, Any]], tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(content, encoding="utf-8")
    table = read_table(tmp_path / "x.json")
    assert list(zip(table.column("a"), table.column("b"), strict=True)) == rows


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[1]",
        "3",
        '{"a": 1}\n{"a": ',
        '{"a": [1], "b": [1, 2]}',
        '{"a": ' * 10_000,
        "[" * 100_000,
        '{"text": ' + "[" * 10_000,
    ],
)
def test_json_that_is_none_is_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(DataError) as caught:
        read_table(tmp_path / "x.jsonl")
    assert "\n" not in str(caught.value)


def test_nothing_is_unpacked_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MOST_UNPACKED", 1 << 20)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    with gzip.open(tmp_path / "bomb.csv.gz", "wb") as file:
        file.write(b"text,label\n" + b"\0" * (1 << 24))
    with pytest.raises(DataError, match=r"unpacks to more than 1[0-9]{6} bytes"):
        read_table(tmp_path / "bomb.csv.gz")
    assert not list((tmp_path / "temporary").iterdir())
    with gzip.open(tmp_path / "fine.csv.gz", "wb") as file:
        file.write(b"text,label\nx,y\n" * 1000)
    assert len(read_table(tmp_path / "fine.csv.gz").column("text")) == 1999


def hub(monkeypatch: pytest.MonkeyPatch, labels: dict[str, list[int | None]]) -> None:
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )

    def split(name: str, values: list[int | None]) -> Any:
        rows = {"text": [f"{name} {i}" for i in range(len(values))], "label": values}
        return datasets.Dataset.from_dict(rows, features=features)

    found = {name: tables.Table(f"'x/y' ({name} split)", split(name, values)) for name, values in labels.items()}
    monkeypatch.setattr(finding, "read_hub", lambda *args, **options: found)


def test_a_test_split_without_labels_gives_way_to_the_validation_split(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, {"train": [0, 1] * 10, "validation": [0, 1, 1], "test": [-1] * 5})
    data = load_data("x/y")
    assert len(data.test) == 3
    (note,) = data.notes
    assert "(test split) has no labels; 'x/y' (validation split) is the test set instead" in note
    hub(monkeypatch, {"train": [0, 1] * 10, "validation": [0, 1, 1], "test": [0, 1]})
    assert (len(load_data("x/y").test), load_data("x/y").notes) == (2, ())
    hub(monkeypatch, {"train": [0, 1] * 10, "validation": [-1], "test": [-1]})
    data = load_data("x/y")
    assert len(data.train) + len(data.test) == 20 and len(data.test) > 0
    assert "held out for testing instead" in data.notes[0]
    assert len(load_data("x/y", test_fraction=0.5).test) == 10
    hub(monkeypatch, {"train": [0, -1] * 10, "test": [0, 1]})
    with pytest.raises(DataError, match=r"10 of 20 rows of .* have no label .* \(row 2, row 4, "):
        load_data("x/y")


def test_cells_are_no_formulas() -> None:
    frame = pd.DataFrame(
        {"=x": ["=cmd()", "+1", "-1", "@x", "\tx", "plain"], "n": [1.5, -2, 3, 4, 5, 6]}, index=["=a", *"bcdef"]
    )
    shown = harmless(frame)
    assert list(shown["'=x"]) == ["'=cmd()", "'+1", "'-1", "'@x", "'\tx", "plain"]
    np.testing.assert_array_equal(shown["n"], frame["n"])
    assert shown.index[0] == "'=a"


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "/abs", ".hidden", "-x", "a\\b", "a\nb", "_x"])
def test_arms_name_folders(name: str) -> None:
    text = f'title = "t"\n[arms.{json.dumps(name)}]\nmethod = "lora-a2"\n'
    with pytest.raises(ConfigError):
        parse_experiment(text, "published")


def test_a_run_goes_on_from_any_folder(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir(), there.mkdir()
    (here / "model").symlink_to(options["model"])
    (here / "data").symlink_to(options["data"])
    monkeypatch.chdir(here)
    launch(RunConfig(**{**options, "model": "model", "data": "data", "output_dir": "out"}), Observer())
    monkeypatch.chdir(there)
    assert resume("../here/out", Observer()).server_rounds == 3
    assert evaluate_run("../here/out").num_examples == 12
    assert load_predictor("../here/out").predict(["w1 w2"]).shape == (1, 3)


def test_data_that_are_not_those_of_the_run_are_told_by_their_labels(options: dict[str, Any], tmp_path: Path) -> None:
    data = tmp_path / "data.csv"
    data.write_text("text,label\n" + "".join(f"w{i % 9} w1,{'abc'[i % 3]}\n" for i in range(30)))
    launch(RunConfig(**{**options, "data": str(data), "output_dir": str(tmp_path / "run")}), Observer())
    data.write_text("text,label\n" + "".join(f"w{i % 9} w1,{'ab'[i % 2]}\n" for i in range(30)))
    with pytest.raises(Exception, match="the run has 3 labels, and data has 2, or others"):
        evaluate_run(tmp_path / "run")


def test_the_generated_apps_data_are_those_of_its_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lora_a2.flower.new_app import write_app

    write_app(tmp_path / "tickets")
    (tmp_path / "x.csv").write_text("body,queue\n" + "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(20)))
    code = (tmp_path / "tickets" / "tickets" / "data.py").read_text()
    names: dict[str, Any] = {}
    exec(compile(code, "data.py", "exec"), names)
    config = RunConfig(data=str(tmp_path / "x.csv"), text_column="body", label_column="queue", max_examples=8, seed=3)
    assert names["load_data"](config).fingerprint() == load_data(**config.data_options()).fingerprint()
    seen: dict[str, Any] = {}
    monkeypatch.setattr("lora_a2.load_data", lambda **given: seen.update(given), raising=False)
    names["load_data"](config)
    assert seen == config.data_options()


@pytest.mark.parametrize(
    "content",
    [
        '{"text": "\\ud800", "label": 1}',
        '{"text": "a", "label": "\\udfff"}',
        '{"\\ud800": 1}',
        '{"n": ' + "9" * 5000 + "}",
    ],
)
def test_json_that_python_reads_and_nothing_else_does(content: str, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(f"{content}\n{content}\n")
    with pytest.raises(DataError, match=r"half of a character|thousands of digits"):
        read_table(tmp_path / "x.jsonl")


def test_errors_and_predictions_show_control_characters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Oracle:
        label_names = ("a\x1b[31m", "b")

        def predict(self, given: list[str]) -> np.ndarray:
            return np.full((len(given), 2), 0.5)

    monkeypatch.setattr("lora_a2.runs.predict.load_predictor", lambda *args, **options: Oracle())
    (tmp_path / "adapter_config.json").touch()
    assert main(["predict", str(tmp_path), "te\x1bxt"]) == 0
    assert main(["partition", "--data", "no\x1b[31m.csv"]) == 2
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out + printed.err
    assert "a\\x1b[31m" in printed.out and "no\\x1b[31m.csv" in printed.err
