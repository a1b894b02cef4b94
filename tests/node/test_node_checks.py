"""`lora-a2 node --check`: whatever would fail in a first round fails here, by name, and nothing is started or sent."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from cli_helpers import one_error
from federation import LABELS, save_data, save_model
from lora_a2.cli import main
from lora_a2.node import checks
from lora_a2.node.logs import JsonFormatter
from writers import save_questions, save_writer


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("node")
    return {"data": str(save_data(folder / "mine.csv", 20)), "model": str(save_model(folder / "model"))}


def check(folder: Path, files: dict[str, str], capsys: pytest.CaptureFixture[str], **more: Any) -> dict[str, Any]:
    """What is found, by what is looked at; the exit status has to go with it."""
    places = {"socket": folder / "run" / "worker.sock", "store": folder / "store"}
    given = {**files, **places, **more}
    capsys.readouterr()
    status = main(["node", "--check", "--json", *(f"--{key}={value}" for key, value in given.items())])
    found = json.loads(capsys.readouterr().out)
    states = {one["what"]: (one["state"], one["said"]) for one in found["checks"]}
    assert len(states) == len(found["checks"])
    failed = any(state == "failed" for state, _ in states.values())
    assert found["ok"] is not failed
    assert status == int(failed)
    return states


def failed(found: dict[str, Any]) -> set[str]:
    return {what for what, (state, _) in found.items() if state == "failed"}


def policy(folder: Path, text: str) -> Path:
    path = folder / "node.toml"
    path.write_text(text)
    return path


def test_a_node_that_is_ready(tmp_path: Path, files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    found = check(tmp_path, files, capsys)
    assert not failed(found)
    assert {what for what, (state, _) in found.items() if state == "not checked"} == {"key", "server"}
    assert found["data"][1].startswith("20 labelled examples")
    assert "broken (7)" in found["classes"][1]
    assert "16 to train with and 4 to test with" in found["examples"][1]
    assert not (tmp_path / "store").exists()
    assert not (tmp_path / "run" / "worker.sock").exists()


def test_the_fingerprint_is_the_one_that_a_policy_takes(
    tmp_path: Path, files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    said = check(tmp_path, files, capsys)["model"][1]
    fingerprint = next(word.rstrip(",") for word in said.split() if len(word.rstrip(",")) == 64)
    allowed = policy(tmp_path, f"model-fingerprints = ['{fingerprint}']\nlabels = {list(LABELS)}\nmax-rank = 2\n")
    assert not failed(check(tmp_path, files, capsys, policy=allowed))


@pytest.mark.parametrize(
    ("text", "what", "part"),
    [
        ("model-fingerprints = ['abc']", "model", "model-fingerprints = ['abc']"),
        ("labels = ['late', 'lost']", "classes", "'broken'"),
        ("max-rnk = 3", "policy", "max-rnk"),
    ],
)
def test_what_the_policy_does_not_allow(
    text: str, what: str, part: str, tmp_path: Path, files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    found = check(tmp_path, files, capsys, policy=policy(tmp_path, text))
    assert what in failed(found)
    assert part in found[what][1]


@pytest.mark.parametrize(
    ("option", "value", "expected", "part"),
    [
        ("data", "none.csv", {"data"}, "There is no data set"),
        ("text-column", "body", {"data"}, "body"),
        ("model", "none/here", {"model"}, "none/here"),
        ("test-data", "none.csv", {"examples"}, "none.csv"),
    ],
)
def test_what_is_not_there(
    option: str,
    value: str,
    expected: set[str],
    part: str,
    tmp_path: Path,
    files: dict[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = check(tmp_path, files, capsys, **{option: value})
    assert failed(found) == expected
    assert part in found[next(iter(expected))][1]


def test_places_that_cannot_be_used(tmp_path: Path, files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "file").touch()
    found = check(tmp_path, files, capsys, socket=tmp_path / "open" / "w.sock", store=tmp_path / "file" / "store")
    assert failed(found) == {"socket", "store"}
    assert "it must be yours alone" in found["socket"][1]
    assert "file" in found["store"][1]


def test_memory_that_is_not_enough(
    tmp_path: Path, files: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "free_memory", lambda: 1000)
    found = check(tmp_path, files, capsys)
    assert failed(found) == {"memory"}
    monkeypatch.setattr(checks, "free_memory", lambda: None)
    assert check(tmp_path, files, capsys)["memory"][0] == "not checked"


def test_a_node_with_examples_of_one_class(
    tmp_path: Path, files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    data = save_data(tmp_path / "one.csv", 8, ("late",))
    assert not failed(check(tmp_path, {**files, "data": str(data)}, capsys))


def test_a_node_of_a_model_that_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, model = save_questions(tmp_path / "questions.jsonl", 12), save_writer(tmp_path / "model")
    found = check(tmp_path, {"data": str(data), "model": str(model)}, capsys)
    assert not failed(found)
    assert found["data"][1].startswith("12 prompts, chats or texts")


def test_a_line_each_and_how_many_failed(
    tmp_path: Path, files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--data=none.csv", f"--model={files['model']}", f"--socket={tmp_path / 'run' / 'w.sock'}"]
    assert main(["node", "--check", f"--store={tmp_path / 'store'}", *argv]) == 1
    *lines, last = capsys.readouterr().out.splitlines()
    assert all(line.startswith(("ok  ", "failed  ", "not checked  ")) for line in lines)
    assert last == f"1 of {len(lines)} checks failed: data."


def test_what_is_for_checks_alone_is_refused_without(
    tmp_path: Path, files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--data", files["data"], "--socket", str(tmp_path / "run" / "w.sock"), "--superlink", "host:9092"]
    assert main(["node", *argv]) == 2
    assert "need --check" in one_error(capsys)


def test_a_json_log_has_an_object_a_line_whatever_a_server_sends() -> None:
    forged = 'late\n{"level": "INFO"}\x1b[2J\u2028ü'
    record = logging.LogRecord("lora_a2.node", logging.ERROR, "", 0, "Run %s", (forged,), None)
    line = JsonFormatter().format(record)
    assert "\n" not in line and line.isascii() and line.isprintable()
    found = json.loads(line)
    assert found["message"] == f"Run {forged}"
    assert (found["level"], found["logger"]) == ("ERROR", "lora_a2.node")
    assert found["time"].endswith("+00:00")
