"""The model that is kept is the best one, if that is asked for; and which round it is of is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import lora_a2.runs.checkpoints
import lora_a2.system.files
from cli_helpers import one_error
from federation import save_data, study_options
from lora_a2.analysis.record import load_run
from lora_a2.cli import main
from lora_a2.config.run import make_config
from lora_a2.errors import RunError
from lora_a2.federation.observer import Observer
from lora_a2.report.inputs import Run
from lora_a2.runs.directory import RunDirectory
from lora_a2.runs.jobs import launch, resume
from lora_a2.runs.measuring import evaluate_run
from lora_a2.runs.summary import RunSummary
from run_files import contents, score_rounds
from tiny import Stopping

ACCURACIES = [0.3, 0.6, 0.4, 0.6, 0.7]


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("study")
    more = {"num_server_rounds": 4, "validation_fraction": 0.25, "keep": "best"}
    found = {**study_options(folder), **more, "data": str(save_data(folder / "texts.csv", count=40))}
    return {**found, "partitioner": "iid"}


@pytest.fixture(autouse=True)
def scored(monkeypatch: pytest.MonkeyPatch) -> None:
    score_rounds(monkeypatch, ACCURACIES)


def run(options: dict[str, Any], path: Path, observer: Observer | None = None, **more: Any) -> RunSummary:
    return launch(make_config({}, {**options, **more, "output_dir": str(path)}), observer or Observer())


def results(path: Path) -> dict[str, Any]:
    return {
        name: data for name, data in contents(path).items() if name.split("/")[0] in ("adapter", "model", "personal")
    }


@pytest.mark.parametrize("method", ["lora-a2", "flora", "fedsa-lora"])
def test_the_result_is_that_of_the_best_round(method: str, options: dict[str, Any], tmp_path: Path) -> None:
    best = run(options, tmp_path / "best", method=method)
    last = run(options, tmp_path / "last", method=method, keep="last")
    short = run(options, tmp_path / "short", method=method, keep="last", num_server_rounds=2)
    assert (best.kept_round, last.kept_round, short.kept_round) == (2, 4, 2)
    assert best.server_rounds == 4
    assert best.score == Run("best", load_run(tmp_path / "best")).score == 0.6
    assert best.metrics == short.metrics and best.personal == short.personal
    assert results(tmp_path / "best") == results(tmp_path / "short") != results(tmp_path / "last")
    assert results(tmp_path / "best")
    assert evaluate_run(tmp_path / "best").to_json() == evaluate_run(tmp_path / "short").to_json()
    ledgers = [contents(tmp_path / name)["rounds.jsonl"] for name in ("best", "last")]
    assert ledgers[0] == ledgers[1]


def test_it_survives_interruptions_and_more_rounds(options: dict[str, Any], tmp_path: Path) -> None:
    run(options, tmp_path / "whole")
    for stop in range(1, 5):
        path = tmp_path / f"stopped-{stop}"
        with pytest.raises(KeyboardInterrupt):
            run(options, path, Stopping(stop))
        resume(path, Observer())
        assert contents(path) == contents(tmp_path / "whole"), stop
    longer = resume(tmp_path / "whole", Observer(), num_server_rounds=5)
    assert longer.kept_round == 5 and longer.metrics["accuracy"] == 0.7
    run(options, tmp_path / "longer", num_server_rounds=5)
    assert contents(tmp_path / "whole") == contents(tmp_path / "longer")
    back = resume(tmp_path / "whole", Stopping(6), 4)
    assert back.kept_round == 5
    assert contents(tmp_path / "whole") == contents(tmp_path / "longer")


class Killed(BaseException):
    """Stands for kill -9."""


def test_killed_at_a_write_it_ends_as_if_never_killed(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls, fatal = lora_a2.system.files.write_atomic, [0], [-1]

    def dying(path: Path, data: bytes) -> None:
        calls[0] += 1
        if calls[0] == fatal[0]:
            raise Killed
        write(path, data)

    for module in (lora_a2.system.files, lora_a2.runs.checkpoints):
        monkeypatch.setattr(module, "write_atomic", dying)
    run(options, tmp_path / "whole")
    total, expected = calls[0], contents(tmp_path / "whole")
    for number in range(6, total + 1, 2):
        path = tmp_path / f"killed-{number}"
        calls[0], fatal[0] = 0, number
        with pytest.raises(Killed):
            run(options, path)
        fatal[0] = -1
        resume(path, Observer())
        assert contents(path) == expected, number


def test_a_damaged_best_round_is_noticed(options: dict[str, Any], tmp_path: Path) -> None:
    run(options, tmp_path / "run")
    best = tmp_path / "run" / "checkpoint" / "round-00002.safetensors"
    best.write_bytes(best.read_bytes()[:-1] + b"!")
    for use in (lambda: resume(tmp_path / "run", Observer()), lambda: evaluate_run(tmp_path / "run")):
        with pytest.raises(RunError, match=r"round-00002.safetensors is damaged"):
            use()


def test_an_unfinished_run_says_which_round_it_is(
    options: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(options, path, Stopping(4))
    assert main(["predict", str(path), "w3"]) == 0
    assert capsys.readouterr().err == (
        f"{path} is not finished: this is its model after round 2 of 4, the best of 3.\n"
    )
    assert RunDirectory.open(path).rounds_done() == 3


def test_the_test_set_does_not_choose(
    options: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", "--data", options["data"], "--model", options["model"], "--output-dir", str(tmp_path / "run")]
    assert main([*arguments, "--keep", "best"]) == 2
    assert "keep: it has no effect here; it needs --validation-fraction" in one_error(capsys)
    assert main([*arguments, "--keep", "first"]) == 2
    assert "keep" in one_error(capsys)
    assert not (tmp_path / "run").exists()


def test_the_summary_and_the_list_of_rounds(
    options: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    run(options, path, eval_every=2, method="fedsa-lora")
    assert main(["resume", str(path), "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert "60.0 %" in printed and "4; the result is the best, round 2" in printed
    assert main(["rounds", str(path)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()][2:]
    ledger = [json.loads(line) for line in (path / "rounds.jsonl").read_text().splitlines()]
    assert [row[0] for row in rows] == ["1", "2", "3", "4"]
    assert [row[1] for row in rows] == [f"{line['train_loss']:.3f}" for line in ledger]
    assert [("60.0" in row, row[-2:] == ["best,", "kept"]) for row in rows] == [
        (False, False),
        (True, True),
        (False, False),
        (True, False),
    ]
    assert main(["rounds", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["finished"], found["num_server_rounds"]) == (True, 4)
    assert (found["best_round"], found["kept_round"]) == (2, 2)
    assert [row["uploaded_bytes"] for row in found["rounds"]] == [line["uploaded_bytes"] for line in ledger]
    assert [row["metrics"].get("accuracy") for row in found["rounds"]] == [None, 0.6, None, 0.6]


def test_the_rounds_of_a_run_that_goes_on(
    options: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(options, path, Stopping(3), keep="last", eval_every=4)
    assert main(["rounds", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["finished"], found["best_round"], found["kept_round"]) == (False, None, 2)
    assert main(["rounds", str(path)]) == 0
    assert "Accuracy" not in capsys.readouterr().out
    with pytest.raises(KeyboardInterrupt):
        run(options, tmp_path / "begun", Stopping(1))
    assert main(["rounds", str(tmp_path / "begun")]) == 2
    assert "has no finished round yet" in one_error(capsys)
