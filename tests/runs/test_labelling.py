"""`predict` on a table, and `predict` and `evaluate` on a run that is not finished."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli_helpers import one_error
from federation import study_options, texts
from lora_a2.cli import main
from lora_a2.config.run import make_config
from lora_a2.data.tables import read_table
from lora_a2.federation.observer import Observer
from lora_a2.runs.jobs import launch
from lora_a2.runs.measuring import evaluate_run
from lora_a2.runs.predict import load_predictor
from tiny import Stopping

METHODS = ("lora-a2", "flora")  # one ends as an adapter, the other moves base weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For each method a run of two rounds, and one of four that was stopped after two."""
    folder = tmp_path_factory.mktemp("labelling")
    options = {**study_options(folder), "text_column": "text"}
    for method in METHODS:
        own = {**options, "method": method}
        launch(make_config({}, {**own, "output_dir": str(folder / method)}), Observer())
        longer = {**own, "num_server_rounds": 4, "output_dir": str(folder / f"{method}-stopped")}
        with pytest.raises(KeyboardInterrupt):
            launch(make_config({}, longer), Stopping(3))  # it is told of a round before that is committed
    return folder


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """A table to be labelled."""
    path = tmp_path / "new.csv"
    path.write_text("id,text,label\n" + "".join(f"0{k},{text},?\n" for k, text in enumerate(texts(70))))
    return path


def test_a_table_is_labelled(folder: Path, new: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "labelled.csv"
    assert main(["predict", str(folder / "lora-a2"), "--data", str(new), "--output", str(output)]) == 0
    printed = capsys.readouterr()
    assert "70 rows" in printed.out and "predicted_label and predicted_probability" in printed.out
    assert printed.err == ""
    given, found = read_table(new), read_table(output)
    assert found.names == ("id", "text", "label", "predicted_label", "predicted_probability")
    assert all(found.column(name) == given.column(name) for name in given.names)
    predictor = load_predictor(folder / "lora-a2")
    expected = np.concatenate([predictor.predict([text]) for text in given.column("text")])
    assert found.column("predicted_label") == [predictor.label_names[k] for k in expected.argmax(1)]
    shown = np.array(found.column("predicted_probability"), float)
    np.testing.assert_allclose(shown, expected.max(1), atol=1e-5)


def test_a_table_of_other_names_and_another_format(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"body": "w3 w4", "n": 1}, {"body": "w5", "n": None}]
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "labelled.jsonl"
    run = str(folder / "lora-a2" / "adapter")  # of which nothing says how the run read its data
    arguments = ["--data", str(tmp_path / "new.jsonl"), "--text-column", "body", "--output", str(output), "--json"]
    assert main(["predict", run, *arguments]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "output": str(output),
        "num_examples": 2,
        "columns": ["label", "probability"],
    }
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert [{"body": row["body"], "n": row["n"]} for row in found] == rows
    assert all(row["label"] in ("broken", "late", "lost") and 0 < row["probability"] <= 1 for row in found)


def test_without_an_output_the_rows_are_printed(folder: Path, new: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(folder / "lora-a2"), "--data", str(new), "--json", "--top", "1"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in rows] == read_table(new).column("text")


def test_a_text_that_is_a_file_s_name_is_pointed_out(
    folder: Path, new: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(folder / "lora-a2"), str(new), "w3"]) == 0
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert f"lora-a2 predict {folder / 'lora-a2'} --data {new}" in printed.err
    assert printed.out.startswith(str(new))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--output", "x.csv"], "--output is of the table of --data"),
        (["--text-column", "x"], "--text-column is of the table of --data"),
        (["a text", "--data", "DATA"], "Give TEXT or --data, not both"),
        (["--data", "DATA", "--output", "x.doc"], "says no format"),
        (["--data", "DATA", "--output", "DATA"], "is the file of --data"),
        (["--data", "DATA", "--output", "x.csv", "--top", "2"], "leave --top out"),
        (["--data", "DATA", "--text-column", "body"], "has no column 'body'"),
        (["--data", "EMPTY"], "has no text"),
    ],
)
def test_what_cannot_be_is_one_line(
    arguments: list[str],
    expected: str,
    folder: Path,
    new: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.csv").write_text("text,n\n,1\n")
    files = {"DATA": str(new), "EMPTY": str(tmp_path / "empty.csv")}
    before = new.read_bytes()
    assert main(["predict", str(folder / "lora-a2"), *(files.get(each, each) for each in arguments)]) == 2
    assert expected in one_error(capsys)
    assert new.read_bytes() == before and not (tmp_path / "x.csv").exists()


@pytest.mark.parametrize("method", METHODS)
def test_an_unfinished_run_has_the_model_of_its_last_round(
    method: str, folder: Path, new: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """That is the model of a run that ended there."""
    stopped, whole = folder / f"{method}-stopped", folder / method
    some = texts(5)
    np.testing.assert_array_equal(load_predictor(stopped).logits(some), load_predictor(whole).logits(some))
    assert evaluate_run(stopped).to_json() == evaluate_run(whole).to_json()
    before = sorted(path.name for path in stopped.rglob("*"))

    def printed(*arguments: str) -> tuple[Any, str]:
        assert main(list(arguments)) == 0
        found = capsys.readouterr()
        return found.out, found.err

    for arguments in (
        ["predict", some[0]],
        ["evaluate", "--json"],
        ["evaluate", "--json", "--data", str(folder / "texts.csv")],
    ):
        command, *rest = arguments
        expected, nothing = printed(command, str(whole), *rest)
        out, err = printed(command, str(stopped), *rest)
        assert (out, nothing) == (expected, "")
        assert err == f"{stopped} is not finished: this is its model after round 2 of 4.\n"
    assert sorted(path.name for path in stopped.rglob("*")) == before


def test_an_evaluation_tells_of_clients_and_classes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, data = str(folder / "lora-a2"), str(folder / "texts.csv")
    assert main(["evaluate", run, "--json"]) == 0
    own = json.loads(capsys.readouterr().out)
    assert {row["client"]: row["accuracy"] for row in own["clients"]} == own["per_client"]
    assert sum(row["num_examples"] for row in own["clients"]) == own["num_examples"]
    ledger = json.loads((folder / "lora-a2" / "rounds.jsonl").read_text().splitlines()[-1])["metrics"]
    assert own == {**ledger, **{name: own[name] for name in ("clients", "classes", "confusions")}}
    assert main(["evaluate", run, "--data", data, "--json"]) == 0
    other = json.loads(capsys.readouterr().out)
    table = read_table(Path(data))
    predictor = load_predictor(run)
    predicted = [predictor.label_names[k] for k in predictor.predict(table.column("text")).argmax(1)]
    for row in other["classes"]:
        both = zip(table.column("label"), predicted, strict=True)
        hits = sum(label == guess == row["label"] for label, guess in both)
        assert row["num_examples"] == table.column("label").count(row["label"])
        assert row["recall"] == hits / row["num_examples"]
    assert other["majority_accuracy"] == max(map(table.column("label").count, predictor.label_names)) / len(table)
    assert main(["evaluate", run, "--data", data]) == 0
    printed = capsys.readouterr().out
    assert "Classes" in printed and "Confusions" in printed and "Always the largest class" in printed


def test_the_summary_says_what_the_accuracy_is_of(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resume", str(folder / "lora-a2"), "--quiet"]) == 0
    printed = capsys.readouterr().out.splitlines()
    ledger = json.loads((folder / "lora-a2" / "rounds.jsonl").read_text().splitlines()[-1])["metrics"]
    assert (
        printed[0].split("  ")[-1].strip() == f"{100 * ledger['accuracy']:.1f} % of {ledger['num_examples']} examples"
    )
    assert printed[1].split() == ["Macro-F1", f"{100 * ledger['macro_f1']:.1f}", "%"]
    assert printed[2] == f"Always the largest class  {100 * ledger['majority_accuracy']:.1f} %"


def test_a_run_without_a_finished_round_has_no_model(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = Path(shutil.copytree(folder / "lora-a2-stopped", tmp_path / "begun"))
    for path in begun.glob("checkpoint/*"):
        path.unlink()
    for arguments in (["predict", str(begun), "w3"], ["evaluate", str(begun)]):
        assert main(arguments) == 2
        assert "has no finished round yet: continue it with 'lora-a2 resume" in one_error(capsys)
