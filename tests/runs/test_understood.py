"""What a run says of its data before it trains, and the time that it says at the end."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from federation import study_options
from lora_a2.config.opening import open_data
from lora_a2.config.run import RunConfig
from lora_a2.display.live import LiveDisplay, PlainDisplay, SilentDisplay
from lora_a2.federation.observer import Observer, RunStart
from lora_a2.runs.jobs import launch, resume, set_up
from tiny import Stopping
from writers import writing_options


class Listening(Observer):
    """Keeps what it is told, in order."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.rows: dict[str, str] = {}

    def loaded(self, rows: Sequence[tuple[str, str]]) -> None:
        self.told.append("loaded")
        self.rows = dict(rows)

    def note(self, text: str) -> None:
        self.told.append(text)

    def started(self, start: RunStart) -> None:
        self.told.append("started")


def told(given: dict[str, Any], folder: Path) -> tuple[Listening, RunConfig]:
    listening, config = Listening(), RunConfig(**given, output_dir=str(folder / "run"))
    launch(config, listening)
    return listening, config


def numbers(text: str) -> list[int]:
    return [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", text)]


def test_a_classifier_s_data(tmp_path: Path) -> None:
    listening, config = told({**study_options(tmp_path), "num_server_rounds": 1}, tmp_path)
    data, rows = open_data(config), listening.rows
    assert numbers(rows["Examples"]) == [len(data.train), len(data.test)]
    assert rows["Columns"] == "text 'text', label 'label'"
    counts = np.bincount(data.train.labels)
    classes = rows["Classes"]
    assert numbers(classes) == [len(counts), counts.max(), counts.min()]
    named = re.findall("'([^']*)'", classes)
    assert [counts[data.label_names.index(name)] for name in named] == [counts.max(), counts.min()]
    sizes = [len(client.train) for client in set_up(config).clients]
    assert numbers(rows["Clients"]) == [len(sizes), min(sizes), max(sizes)]
    assert rows["Cut texts"] == "none, at 128 tokens"
    assert re.fullmatch(r"\d+ s", rows["Loaded in"])
    assert listening.told.index("loaded") < listening.told.index("started")


def test_cut_texts_of_a_classifier(tmp_path: Path) -> None:
    listening, config = told({**study_options(tmp_path), "num_server_rounds": 1, "max_length": 5}, tmp_path)
    assert "Cut texts" not in listening.rows
    setup = set_up(config.model_copy(update={"task": "classification"}))
    data, tokenizer = setup.data, setup.model.tokenizer
    for part, name in ((data.train, "training"), (data.test, "test")):
        cut = sum(len(tokenizer(text)["input_ids"]) > 5 for text in part.texts)  # type: ignore[union-attr, arg-type]
        assert 0 < cut < len(part)
        assert f"{cut} of {len(part)} {name} examples are cut to max-length." in listening.told


def test_the_data_of_a_model_that_writes(tmp_path: Path) -> None:
    listening, config = told({**writing_options(tmp_path), "num_server_rounds": 1}, tmp_path)
    rows = listening.rows
    assert rows["Columns"] == "prompt 'prompt', answer 'completion'"
    assert "Classes" not in rows
    clients = set_up(config.model_copy(update={"task": "causal-lm"})).clients
    expected = [
        sum(int((labels != -100).sum()) for client in clients for labels in getattr(client, part).labels)
        for part in ("train", "test")
    ]
    assert numbers(rows["Learnt tokens"]) == expected


def test_displays_print_it_and_quiet_ones_do_not(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [("Examples", "1,200 to train with"), ("Columns", "text '[bold]body'")]
    for make in (PlainDisplay, LiveDisplay):
        console = Console(file=io.StringIO(), width=40, force_terminal=False)
        with make(console) as display:
            display.loaded(rows)
        assert isinstance(console.file, io.StringIO)
        assert "Examples  1,200 to train with\nColumns   text '[bold]body'\n" in console.file.getvalue()
    with SilentDisplay() as display:
        display.loaded(rows)
    assert capsys.readouterr() == ("", "")


def test_loading_is_in_a_run_s_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that only loading moves: an hour each time."""
    given, now = {**study_options(tmp_path), "num_server_rounds": 2}, [0.0]
    monkeypatch.setattr("lora_a2.runs.jobs.time.perf_counter", lambda: now[0])
    load = set_up

    def slowly(config: RunConfig) -> Any:
        now[0] += 3600
        return load(config)

    monkeypatch.setattr("lora_a2.runs.jobs.set_up", slowly)
    listening = Listening()
    assert launch(RunConfig(**given, output_dir=str(tmp_path / "a")), listening).seconds >= 3600
    assert listening.rows["Loaded in"] == "3600 s"
    assert launch(RunConfig(**given, output_dir=str(tmp_path / "b")), Observer(), began=now[0] - 60).seconds >= 3660
    with pytest.raises(KeyboardInterrupt):
        launch(RunConfig(**given, output_dir=str(tmp_path / "c")), Stopping(after=1))
    assert resume(tmp_path / "c", Observer()).seconds == 3600
