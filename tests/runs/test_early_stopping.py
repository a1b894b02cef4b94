"""A run ends when its score has not become better for long enough, and stays ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cli_helpers import one_error
from federation import study_options
from lora_a2.analysis.record import load_run
from lora_a2.cli import main
from lora_a2.config.run import RunConfig, make_config
from lora_a2.errors import ConfigError
from lora_a2.federation.observer import Observer, RunStart
from lora_a2.report.inputs import Run
from lora_a2.runs.directory import RunDirectory
from lora_a2.runs.jobs import launch, resume
from lora_a2.runs.summary import RunSummary
from lora_a2.studies.batch import PlannedRun, check_evaluated
from run_files import contents, score_rounds
from tiny import Stopping

ACCURACIES = [0.3, 0.5, 0.4, 0.5, 0.6, 0.6, 0.2, 0.6, 0.9]
"""After each round: with a patience of 2 it is over after round 4, with one of 3 after round 8."""


class Listening(Observer):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.starts: list[RunStart] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def started(self, start: RunStart) -> None:
        self.starts.append(start)


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {**study_options(tmp_path_factory.mktemp("study")), "num_server_rounds": len(ACCURACIES)}


@pytest.fixture(autouse=True)
def scored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every round is as good as said above."""
    score_rounds(monkeypatch, ACCURACIES)


def run(options: dict[str, Any], path: Path, observer: Observer | None = None, **more: Any) -> RunSummary:
    return launch(make_config({}, {**options, **more, "output_dir": str(path)}), observer or Observer())


@pytest.mark.parametrize(
    ("more", "rounds", "said"),
    [
        ({"early_stopping_patience": 2}, 4, "2 evaluations without a better accuracy than 50.0 % after round 2"),
        ({"early_stopping_patience": 3}, 8, "3 evaluations without a better accuracy than 60.0 % after round 5"),
        ({"early_stopping_patience": 1, "eval_every": 3}, 9, None),  # 40, 60, 90 %
        ({"early_stopping_patience": 1, "eval_every": 2}, 4, "1 evaluation without a better accuracy than 50.0 %"),
        ({}, 9, None),
    ],
)
def test_a_run_ends_when_patience_does(
    more: dict[str, Any], rounds: int, said: str | None, options: dict[str, Any], tmp_path: Path
) -> None:
    heard = Listening()
    summary = run(options, tmp_path / "run", heard, **more)
    assert summary.server_rounds == rounds
    assert summary.ended_early == (rounds < len(ACCURACIES))
    assert summary.metrics["accuracy"] == ACCURACIES[rounds - 1]
    assert RunDirectory.open(tmp_path / "run").is_finished
    assert len(heard.notes) == (said is not None)
    if said is not None:
        assert heard.notes[0].startswith(f"Ended early, after round {rounds}: {said}")


def test_what_ended_early_is_that_of_fewer_rounds(options: dict[str, Any], tmp_path: Path) -> None:
    run(options, tmp_path / "early", early_stopping_patience=2)
    run(options, tmp_path / "short", num_server_rounds=4)
    early, short = contents(tmp_path / "early"), contents(tmp_path / "short")
    for name in ("config.toml", "SHA256SUMS"):
        del early[name], short[name]
    assert early == short


def test_an_interrupted_run_has_as_much_patience(options: dict[str, Any], tmp_path: Path) -> None:
    run(options, tmp_path / "whole", early_stopping_patience=2)
    for stop in (3, 4):
        path = tmp_path / f"stopped-{stop}"
        with pytest.raises(KeyboardInterrupt):
            run(options, path, Stopping(stop), early_stopping_patience=2)
        assert resume(path, Observer()).server_rounds == 4
        assert contents(path) == contents(tmp_path / "whole")


def test_what_has_ended_stays_so(options: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run"
    run(options, path, early_stopping_patience=2)
    before, heard = contents(path), Listening()
    assert Run("run", load_run(path)).rounds_planned == 4, "a report takes it for finished"
    assert resume(path, heard).ended_early
    assert contents(path) == before
    assert (heard.starts[0].first_round, heard.starts[0].num_server_rounds) == (5, 4)
    assert main(["resume", str(path)]) == 0
    printed = capsys.readouterr()
    assert "finished already" in printed.err and "Ended early, after round 4" in printed.err
    assert "4, ended early" in printed.out
    assert main(["resume", str(path), "--json", "--quiet"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["ended_early"] is True
    assert main(["resume", str(path), "--num-server-rounds", "20", "--quiet"]) == 2
    assert "ended early, after round 4, by early-stopping-patience 2" in one_error(capsys)
    assert contents(path) == before


def test_rounds_that_may_not_come_are_not_asked_for(options: dict[str, Any]) -> None:
    config = RunConfig(**options, early_stopping_patience=2)
    check_evaluated(PlannedRun("a", config), [])
    with pytest.raises(ConfigError, match="may end before these rounds"):
        check_evaluated(PlannedRun("a", config), [2])
