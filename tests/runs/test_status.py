"""`lora-a2 status`: what a run's directory says of it while it runs, after it stopped, and at its end."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from cli_helpers import one_error
from federation import study_options
from lora_a2.cli import main
from lora_a2.config.run import make_config
from lora_a2.federation.observer import Observer
from lora_a2.federation.records import RoundRecord
from lora_a2.runs.directory import NODES_FILE, RunDirectory
from lora_a2.runs.jobs import launch
from lora_a2.runs.status import RunStatus, run_status
from lora_a2.system.locks import Lock, is_locked


class Watcher(Observer):
    """Asks for the status from inside the run, after each round; ends the run after `rounds` of them."""

    def __init__(self, run: Path, rounds: int) -> None:
        self.run, self.rounds, self.seen = run, rounds, list[RunStatus]()

    def clients_done(self, server_round: int, done: int, cohort: int) -> None:
        if server_round > 1 and len(self.seen) < server_round - 1:
            self.seen.append(run_status(self.run))
            if server_round > self.rounds:
                raise KeyboardInterrupt


def start(folder: Path, rounds: int, total: int = 3) -> tuple[Path, list[RunStatus]]:
    """A run that is interrupted after so many rounds, and its status on the way."""
    options = {**study_options(folder), "num_server_rounds": total, "output_dir": str(folder / "run")}
    watcher = Watcher(folder / "run", rounds)
    try:
        launch(make_config({}, options), watcher)
    except KeyboardInterrupt:
        assert rounds < total
    return folder / "run", watcher.seen


def test_while_it_runs_it_says_how_far(tmp_path: Path) -> None:
    run, seen = start(tmp_path, 3)
    assert [found.state for found in seen] == ["running", "running"]
    assert [found.server_round for found in seen] == [1, 2]
    for found in seen:
        assert found.mean_round_seconds is not None and found.seconds_left is not None
        assert found.seconds_left == pytest.approx(found.mean_round_seconds * (3 - found.server_round))
        assert found.replied == ["client-0", "client-1"]
        assert found.refused == {}
    finished = run_status(run)
    assert (finished.state, finished.server_round, finished.seconds_left, finished.next) == ("finished", 3, None, None)
    assert finished.evaluated == 3 and "accuracy" in finished.metrics
    assert not is_locked(run)


def test_after_it_stopped_it_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = start(tmp_path, 1)
    found = run_status(run)
    assert (found.state, found.server_round, found.num_server_rounds) == ("stopped", 1, 3)
    assert found.next == f"lora-a2 resume {run}"
    (run / NODES_FILE).write_text("{}")
    assert "flwr run APP CONNECTION" in str(run_status(run).next) and f"resume='{run}'" in str(run_status(run).next)
    run.with_name("run-nodes").mkdir()
    assert run_status(run).next == f"lora-a2 flower local-deployment --resume {run}"
    assert main(["status", str(run)]) == 0
    printed = capsys.readouterr().out
    for part in ("stopped", "1 of 3", "2: client-0, client-1", "Accuracy", "Continue with"):
        assert part in printed


def test_before_the_first_round_there_is_nothing_to_tell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = start(tmp_path, 1)
    for path in (run / "checkpoint").iterdir():
        path.unlink()
    with Lock(run):
        found = run_status(run)
        assert main(["status", str(run), "--json"]) == 0
    assert (found.state, found.server_round, found.last_ended, found.seconds_left) == ("running", 0, None, None)
    assert json.loads(capsys.readouterr().out)["replied"] == []


def test_who_was_refused_is_told_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = start(tmp_path, 3)
    committed = RunDirectory.open(run).load_records()

    def refusing(self: RunDirectory) -> list[RoundRecord]:
        """The last two rounds without one of the clients."""
        kept = [replace(record, clients=record.clients[:1], refused={7: "late\x1b[2J"}) for record in committed[1:]]
        return [committed[0], *kept]

    monkeypatch.setattr(RunDirectory, "load_records", refusing)
    found = run_status(run)
    assert found.refused == {"client-7": "late\x1b[2J"} and len(found.replied) == 1
    assert found.refused_before == {"client-7": 1}
    assert main(["status", str(run)]) == 0
    printed = capsys.readouterr().out
    assert "late\\x1b[2J" in printed and "\x1b" not in printed
    assert "client-7 (1)" in printed


def test_the_age_of_the_last_round_is_that_of_its_commit(tmp_path: Path) -> None:
    run, _ = start(tmp_path, 3)
    ended = datetime.fromisoformat(str(run_status(run).last_ended))
    found = run_status(run, ended + timedelta(seconds=90))
    assert found.seconds_since == pytest.approx(90, abs=1.0)  # `last_ended` has no fractions


def test_what_is_no_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(tmp_path)]) == 2
    assert "is not a run directory" in one_error(capsys)


def test_it_needs_no_torch(tmp_path: Path) -> None:
    run, _ = start(tmp_path, 3)
    code = f"import sys; from lora_a2.cli import main; main(['status', {str(run)!r}]); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_asking_does_not_keep_others_out(tmp_path: Path) -> None:
    assert not is_locked(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with Lock(tmp_path):
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)
    Lock(tmp_path).release()


def test_a_missing_folder_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "no/such/run"]) == 2
    assert "no/such/run" in one_error(capsys)
