"""Which runs have a language model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lora_a2.cli import main
from lora_a2.config.run import RunConfig
from lora_a2.errors import DataError, RunError
from lora_a2.federation.observer import Observer
from lora_a2.runs.jobs import launch, resume
from lora_a2.runs.measuring import evaluate_run
from lora_a2.runs.writer import load_writer
from tiny import Stopping
from writers import writing_options


def test_a_classifier_writes_nothing(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run directory"):
        load_writer(tmp_path)
    launch(RunConfig(**{**options, "output_dir": str(tmp_path / "run")}), Observer())
    with pytest.raises(RunError, match="label some with 'lora-a2 predict"):
        load_writer(tmp_path / "run")


@pytest.mark.parametrize("method", ["lora-a2", "flora", "fedsa-lora"])
def test_an_interrupted_run_ends_in_the_same_bytes(method: str, tmp_path: Path) -> None:
    given = {**writing_options(tmp_path), "method": method, "num_server_rounds": 3}
    launch(RunConfig(**given, output_dir=str(tmp_path / "whole")), Observer())
    with pytest.raises(KeyboardInterrupt):
        launch(RunConfig(**given, output_dir=str(tmp_path / "cut")), Stopping(after=2))
    resume(tmp_path / "cut", Observer())
    files = [p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*.safetensors")]
    assert files
    for name in files:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes(), name


@pytest.mark.parametrize("method", ["lora-a2", "flora"])  # an adapter, and a whole model
def test_an_unfinished_run_writes_as_its_last_round(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {**writing_options(tmp_path), "method": method}
    launch(RunConfig(**{**given, "num_server_rounds": 1}, output_dir=str(tmp_path / "short")), Observer())
    with pytest.raises(KeyboardInterrupt):
        launch(RunConfig(**{**given, "num_server_rounds": 3}, output_dir=str(tmp_path / "cut")), Stopping(after=2))
    short, cut = (load_writer(tmp_path / name).model.state_dict() for name in ("short", "cut"))
    assert short.keys() == cut.keys() and all(short[name].equal(cut[name]) for name in short)
    assert evaluate_run(tmp_path / "cut").to_json() == evaluate_run(tmp_path / "short").to_json()
    assert [row["client"] for row in evaluate_run(tmp_path / "cut").tables["clients"]]
    assert main(["generate", str(tmp_path / "cut"), "a question", "--max-new-tokens", "2"]) == 0
    assert capsys.readouterr().err.endswith("is not finished: this is its model after round 1 of 3.\n")


def test_a_run_whose_data_changed_is_not_resumed(tmp_path: Path) -> None:
    given = writing_options(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        launch(RunConfig(**given, output_dir=str(tmp_path / "cut")), Stopping(after=1))
    path = Path(given["data"])
    path.write_text(path.read_text().replace("a", "b", 1))
    with pytest.raises(RunError, match="have changed since it started"):
        resume(tmp_path / "cut", Observer())


def test_the_task_is_told_by_the_columns_and_kept(tmp_path: Path) -> None:
    given = writing_options(tmp_path)
    launch(RunConfig(**given, output_dir=str(tmp_path / "run")), Observer())
    assert 'task = "causal-lm"' in (tmp_path / "run" / "config.toml").read_text()
    assert "task" not in given


class Listening(Observer):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_a_run_says_what_it_found_and_what_it_cut(tmp_path: Path) -> None:
    given = {**writing_options(tmp_path), "max_length": 22, "num_server_rounds": 1}
    listening = Listening()
    launch(RunConfig(**given, output_dir=str(tmp_path / "run")), listening)
    assert listening.notes[0] == "The task is causal-lm, by the columns of the data; --task would say otherwise."
    assert any("training examples are cut to max-length." in note for note in listening.notes)


def test_a_client_with_nothing_to_learn_is_named(tmp_path: Path) -> None:
    given = {**writing_options(tmp_path), "task": "causal-lm"}
    rows = [{"text": text, "who": who} for text, who in (("a b c d", "ann"), ("e f a b", "ann"), ("", "bob"))]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given |= {"data": str(path), "test_data": str(path), "client_column": "who", "partitioner": "natural"}
    given.pop("num_clients")
    with pytest.raises(DataError, match=r"has no text"):
        launch(RunConfig(**given, output_dir=str(tmp_path / "run")), Observer())
