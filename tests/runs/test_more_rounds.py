"""A run that is given more rounds ends as one that was to have them from the start."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import lora_a2.system.files
from cli_helpers import one_error
from federation import study_options
from lora_a2.cli import main
from lora_a2.config.run import make_config
from lora_a2.errors import RunError
from lora_a2.federation.observer import Observer
from lora_a2.runs.directory import RunDirectory
from lora_a2.runs.jobs import launch, resume
from run_files import contents
from tiny import Stopping


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {**study_options(tmp_path_factory.mktemp("study")), "num_server_rounds": 2}


@pytest.fixture(scope="module")
def done(options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run of two rounds, for tests to copy; and what one of three comes to."""
    folder = tmp_path_factory.mktemp("done")
    return run(options, folder / "run"), contents(run(options, folder / "whole", num_server_rounds=3))


def run(options: dict[str, Any], path: Path, observer: Observer | None = None, **more: Any) -> Path:
    launch(make_config({}, {**options, **more, "output_dir": str(path)}), observer or Observer())
    return path


@pytest.mark.parametrize("method", ["lora-a2", "flora", "fedsa-lora"])
@pytest.mark.parametrize("finished", [True, False])
def test_more_rounds(method: str, finished: bool, options: dict[str, Any], tmp_path: Path) -> None:
    own = {**options, "method": method, "warmup_rounds": 1}
    whole = contents(run(own, tmp_path / "whole", num_server_rounds=4))
    path = tmp_path / "run"
    if finished:
        run(own, path)
    else:
        with pytest.raises(KeyboardInterrupt):
            run(own, path, Stopping(2))
    before = (path / "rounds.jsonl").read_bytes()
    summary = resume(path, Observer(), num_server_rounds=4)
    assert summary.server_rounds == 4
    assert contents(path) == whole
    done = before.splitlines(keepends=True)
    assert (path / "rounds.jsonl").read_bytes().startswith(b"".join(done)) and len(done) == (2 if finished else 1)


def test_while_it_has_rounds_to_go_it_is_not_finished(options: dict[str, Any], tmp_path: Path) -> None:
    path = run(options, tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        resume(path, Stopping(4), num_server_rounds=5)
    assert not RunDirectory.open(path).is_finished
    assert resume(path, Observer()).server_rounds == 5
    assert RunDirectory.open(path).is_finished


class Killed(BaseException):
    """Stands for kill -9."""


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_at_any_write_of_the_configuration(
    number: int, moment: str, done: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copytree(done[0], tmp_path / "run"))
    write, calls = lora_a2.system.files.write_atomic, []

    def dying(target: Path, data: bytes) -> None:
        calls.append(target)
        if len(calls) == number:
            if moment == "after":
                write(target, data)
            raise Killed
        write(target, data)

    with monkeypatch.context() as patched:
        patched.setattr(lora_a2.system.files, "write_atomic", dying)
        with pytest.raises(Killed):
            resume(path, Observer(), num_server_rounds=3)
    assert {target.name for target in calls} <= {"SHA256SUMS", "config.toml"}
    replaced = number == 3 or (number == 2 and moment == "after")
    assert resume(path, Observer()).server_rounds == (3 if replaced else 2)
    assert resume(path, Observer(), num_server_rounds=3).server_rounds == 3
    assert contents(path) == done[1]


def test_a_changed_configuration_is_still_noticed(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    path = Path(shutil.copytree(done[0], tmp_path / "run"))
    resume(path, Observer(), num_server_rounds=3)
    config = path / "config.toml"
    config.write_bytes(config.read_bytes().replace(b"num-server-rounds = 3", b"num-server-rounds = 2"))
    with pytest.raises(RunError, match="is damaged or was changed"):
        RunDirectory.open(path)


@pytest.mark.parametrize(
    ("more", "rounds", "expected"),
    [
        ({}, 1, "has 2 finished rounds; give more than that, in all"),
        (
            {"lr_scheduler_type": "linear"},
            3,
            "the learning rate goes over all 2 rounds (lr-scheduler-type linear); with 3 round 2, which is done,",
        ),
        ({"lr_scheduler_type": "cosine"}, 3, "start a new run"),
        ({"lr_scheduler_type": "constant", "warmup_rounds": 1}, 1, "warmup-rounds: 1 of 1"),
    ],
)
def test_what_would_change_rounds_that_are_done_is_refused(
    more: dict[str, Any],
    rounds: int,
    expected: str,
    options: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = run(options, tmp_path / "run", **more)
    before = contents(path)
    assert main(["resume", str(path), "--num-server-rounds", str(rounds), "--quiet"]) == 2
    assert expected in one_error(capsys)
    assert contents(path) == before


def test_the_command_line(
    done: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(shutil.copytree(done[0], tmp_path / "run"))
    before = contents(path)
    assert main(["resume", str(path), "--num-server-rounds", "2", "--quiet", "--json"]) == 0
    assert contents(path) == before
    assert main(["resume", str(path), "--num-server-rounds", "3", "--quiet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["server_rounds"] == 3
    assert main(["resume", str(path), "--num-server-rounds", "4", "--from-round", "2"]) == 2
    assert "give one, and then the other" in one_error(capsys)
    study = tmp_path / "compare"
    study.mkdir()
    (study / "compare.json").write_text("{}")
    shutil.copytree(path, study / "one")
    for folder, expected in ((study, "--num-server-rounds is for one run"), (study / "one", "it keeps its number")):
        assert main(["resume", str(folder), "--num-server-rounds", "4"]) == 2
        assert expected in one_error(capsys)
