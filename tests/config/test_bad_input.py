"""Bad input through the real command line: one line, status 2, and nothing written.

Options that `config` refuses before any work are in test_cli.py and test_config.py; this is what only the data, the
model or a run directory can tell.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from federation import save_data, save_model
from lora_a2.cli import main


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("bad") / "model")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs each test in an empty folder, without a hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def refused(argv: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    """The one line that a command prints; nothing may appear in or vanish from the folder."""
    before = snapshot(Path.cwd())
    capfd.readouterr()
    assert main(argv) == 2
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("lora-a2: error: ")
    assert printed.err.count("\n") == 1
    assert printed.err.endswith("\n")
    assert snapshot(Path.cwd()) == before
    return printed.err


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


GOOD = "text,label\n" + "".join(f"w{i} w{i + 1},{'late' if i % 2 else 'lost'}\n" for i in range(3, 23))


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        (None, [], "There is no data set 'texts.csv'"),
        (GOOD, ["--text-column", "body"], "has no column 'body'"),
        (GOOD, ["--label-column", "topic"], "has no column 'topic'"),
        (GOOD, ["--client-column", "user"], "has no column 'user'"),
        (GOOD.replace("text,", "words,"), [], "cannot be told from its columns 'words', 'label'"),
        (GOOD + ",late\n", [], "Row 21 of 'texts.csv' has no text"),
        (GOOD + "  ,late\n", [], "Row 21 of 'texts.csv' has no text"),
        (GOOD + "w3 w4,\n", [], "Row 21 of 'texts.csv' has no label"),
        (GOOD.replace("late", "lost"), [], "at least two classes"),
        ("text,label\n", [], "no row below the header"),
        ("", [], "the file is empty"),
        (GOOD, ["--num-clients", "100"], "num-clients is 100, but there are only 16 training examples"),
        (
            GOOD,
            ["--num-clients", "100", "--partitioner", "iid"],
            "num-clients is 100, but there are only 16 training examples",
        ),
        (GOOD, ["--max-examples", "1"], "max-examples is 1"),
        (GOOD, ["--alpha", "-0.5"], "alpha: -0.5 should be greater than 0."),
        (GOOD, ["--r", "2", "--rank-budget", "3"], "rank-budget: 3 is above r = 2"),
        (GOOD, ["--method", "lora-a3"], "Did you mean 'lora-a2'?"),
        (GOOD, ["--model", "./no-such-folder"], "no such folder"),
        (GOOD, ["--model", "roberta-bse"], "Did you mean 'roberta-base'?"),
        (GOOD, ["--target-modules", "q_proj"], "target_modules 'q_proj' matches no linear layer. Available: "),
        (GOOD, ["--pooling", "max"], "pooling: 'max' is not one of"),
        (GOOD, ["--device", "abacus"], "Device 'abacus' cannot be used"),
        (GOOD, ["--test-data", "none.csv"], "There is no file 'none.csv'"),
    ],
)
def test_run_refuses(
    content: str | None, options: list[str], said: str, here: Path, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (here / "texts.csv").write_text(content)
    argv = ["run", "--data", "texts.csv", "--model", str(model), "--num-clients", "2", "--quiet"]
    assert said in refused([*argv, "--output-dir", "out/run", *options], capfd)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("data = 'texts.csv'\nlearning-rte = 0.1\n", "Unknown key 'learning-rte'; did you mean 'learning-rate'?"),
        ("data = 'texts.csv\n", "is not valid TOML"),
        ("[run]\ndata = 'texts.csv'\n", "Unknown key 'run'"),
    ],
)
def test_a_wrong_configuration_writes_nothing(
    content: str, said: str, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (here / "study.toml").write_text(content)
    assert said in refused(["run", "--config", "study.toml", "--output-dir", "run"], capfd)


def test_evaluation_on_unfit_data(finished: Path, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(finished, here / "run")
    (here / "new.csv").write_text("text,label\nw3 w4,late\nw5 w6,stolen\n")
    assert "stolen" in refused(["evaluate", "run", "--data", "new.csv"], capfd)
    assert "There is no data set" in refused(["evaluate", "run", "--data", "none.csv"], capfd)


@pytest.fixture(scope="module")
def finished(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small finished run."""
    folder = tmp_path_factory.mktemp("finished")
    data = save_data(folder / "texts.csv")
    options = ["--num-clients", "2", "--num-server-rounds", "2", "--local-epochs", "1", "--r", "4"]
    argv = ["run", "--data", str(data), "--model", str(model), *options, "--output-dir", str(folder / "run")]
    assert main([*argv, "--quiet", "--json"]) == 0
    return folder / "run"


def test_an_output_directory_with_another_run(
    finished: Path, here: Path, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished, here / "run")
    save_data(here / "texts.csv")
    argv = ["run", "--data", "texts.csv", "--model", str(model), "--num-clients", "2", "--output-dir", "run"]
    assert "'lora-a2 resume run'" in refused(argv, capfd)


def delete(name: str) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        (run / name).unlink()

    return damage


def replace(name: str, content: str) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        assert (run / name).is_file()
        (run / name).write_text(content)

    return damage


def halve(name: str) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        data = (run / name).read_bytes()
        (run / name).write_bytes(data[: len(data) // 2])

    return damage


def break_off(run: Path) -> None:
    """The configuration ends in the middle of a line."""
    data = (run / "config.toml").read_bytes()
    (run / "config.toml").write_bytes(data[: data.index(b"=", len(data) // 2) + 1])


def other_rounds(run: Path) -> None:
    """Valid JSON, valid checksum, wrong number."""
    path = run / "checkpoint" / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "server_round": 7}))


RESUME, EVALUATE, PREDICT = ["resume", "run", "--quiet"], ["evaluate", "run"], ["predict", "run", "w3 w4"]


@pytest.mark.parametrize(
    ("damage", "commands"),
    [
        (delete("config.toml"), [RESUME, EVALUATE, PREDICT]),
        (break_off, [RESUME, EVALUATE]),
        (replace("config.toml", "r = 'many'\n"), [RESUME, EVALUATE]),
        (delete("environment.json"), [RESUME, EVALUATE, PREDICT]),
        (halve("environment.json"), [RESUME]),
        (replace("environment.json", "{}"), [RESUME]),
        (delete("checkpoint/state.json"), [EVALUATE]),
        (halve("checkpoint/state.json"), [RESUME, EVALUATE]),
        (delete("checkpoint/round-00002.safetensors"), [RESUME, EVALUATE]),
        (halve("checkpoint/round-00002.safetensors"), [RESUME, EVALUATE]),
        (replace("checkpoint/round-00002.safetensors", "x"), [RESUME, EVALUATE]),
        (other_rounds, [RESUME]),
        (delete("rounds.jsonl"), [RESUME]),
        (halve("rounds.jsonl"), [RESUME]),
        (replace("rounds.jsonl", "[]\n[]\n"), [RESUME]),
        (delete("adapter/adapter_model.safetensors"), [PREDICT]),
        (halve("adapter/adapter_model.safetensors"), [PREDICT]),
        (halve("adapter/head.safetensors"), [PREDICT]),
        (replace("adapter/classifier.json", "{}"), [PREDICT]),
        (replace("adapter/classifier.json", '{"label_names": ["a"], "pooling": "mean", "max_length": 9}'), [PREDICT]),
    ],
)
def test_a_damaged_run_directory(
    damage: Callable[[Path], None],
    commands: list[list[str]],
    finished: Path,
    here: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(finished, here / "run")
    damage(here / "run")
    for argv in commands:
        refused(argv, capfd)


def test_a_run_that_lost_its_result_is_one_that_has_none_yet(
    finished: Path, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its checkpoint is whole, and what is taken from there is said."""
    shutil.copytree(finished, here / "run")
    assert main(PREDICT) == 0
    expected = capfd.readouterr().out
    delete("adapter/adapter_config.json")(here / "run")
    assert main(PREDICT) == 0
    printed = capfd.readouterr()
    assert printed.out == expected
    assert "run is not finished: this is its model after round 2 of 2.\n" in printed.err
    delete("checkpoint/state.json")(here / "run")
    for argv in (EVALUATE, PREDICT):
        refused(argv, capfd)


def test_the_undamaged_directory_is_accepted(finished: Path, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(finished, here / "run")
    for argv in (RESUME, EVALUATE, PREDICT):
        assert main(argv) == 0
    assert "error" not in capfd.readouterr().err
