"""What needs no model does not import PyTorch, which takes seconds: help, lists, plans, and every mistake that can be told at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from federation import save_data
from lora_a2.cli import COMMANDS

HEAVY = ("torch", "transformers", "peft", "flwr")
RUNNER = """
import contextlib, io, json, sys
from lora_a2.cli import main
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        status = main(arguments)
    print(json.dumps([status, out.getvalue(), err.getvalue(), [name for name in sys.argv[2:] if name in sys.modules]]))
"""
SUBCOMMANDS = ("new", "certificates")
MISTAKES: dict[str, list[list[str]]] = {
    "run": [["--method", "nope"], ["--r", "0"], ["--config", "no.toml"], ["--num-clients", "x"], ["text"]],
    "resume": [["EMPTY"], ["nowhere"], []],
    "status": [["EMPTY"], []],
    "rounds": [["EMPTY"], []],
    "compare": [[], ["--methods", "nope"], ["--methods", "lora-a2", "--r", "0"], ["--resume", "EMPTY"]],
    "sweep": [[], ["no.toml"], ["--resume", "EMPTY"], ["BAD.toml"]],
    "report": [[], ["EMPTY"]],
    "evaluate": [[], ["EMPTY"], ["--model", "gpt2"]],
    "predict": [[], ["EMPTY", "text"], ["EMPTY", " "]],
    "generate": [[], ["EMPTY", "text"], ["EMPTY", "text", "--temperature", "2"]],
    "export": [[], ["EMPTY", "out"]],
    "analyze": [[], ["EMPTY"]],
    "partition": [["--data", "no.csv"], ["--partitioner", "nope"], ["--data", "DATA", "--num-clients", "9999"]],
    "cost": [["--method", "nope"], ["--partitioner", "iid"], ["--model", "robrta-base", "--rank-budget", "0"]],
    "methods": [["nope"]],
    "node": [[], ["--data", "DATA"]],
    "flower": [["nope"], *([name, "--nope"] for name in SUBCOMMANDS), ["new", "Not-a-name"]],
}


def light(folder: Path, arguments: list[list[str]]) -> list[tuple[int, str, str]]:
    """Runs commands in a process that imports nothing else; status, output and errors of each."""
    given = [json.dumps(arguments), *HEAVY]
    result = subprocess.run(
        [sys.executable, "-c", RUNNER, *given], cwd=folder, capture_output=True, text=True, check=True
    )
    found = [json.loads(line) for line in result.stdout.splitlines()]
    for each, (_, _, _, heavy) in zip(arguments, found, strict=True):
        assert heavy == [], f"lora-a2 {' '.join(each)} imported {heavy}"
    return [(status, out, err) for status, out, err, _ in found]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("light")
    (path / "EMPTY").mkdir()
    (path / "BAD.toml").write_text("[nonsense]\na = 1\n")
    save_data(path / "DATA.csv")
    return path


def test_every_command_is_gone_over() -> None:
    assert MISTAKES.keys() == COMMANDS.keys()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_and_mistakes(command: str, folder: Path) -> None:
    places = {"EMPTY": str(folder / "EMPTY"), "DATA": str(folder / "DATA.csv"), "BAD.toml": str(folder / "BAD.toml")}
    wrong = [[places.get(word, word) for word in words] for words in MISTAKES[command]]
    helps = [[command, "--help"], *([command, name, "--help"] for name in SUBCOMMANDS if command == "flower")]
    wrong = [[command, "--no-such-option"], *([command, *words] for words in wrong)]
    found = light(folder, [*helps, *wrong])
    for words, (status, out, _) in zip(helps, found, strict=False):
        assert status == 0 and "Usage:" in out, words
    for words, (status, _, err) in zip(wrong, found[len(helps) :], strict=True):
        assert status == 2 and err.count("\n") == 1 and err.startswith("lora-a2: error: "), (words, err)


def test_what_needs_no_model(folder: Path) -> None:
    data = str(folder / "DATA.csv")
    commands = [
        ["--version"],
        ["methods"],
        ["methods", "--json"],
        ["cost"],
        ["cost", "--model", "meta-llama/Llama-3.1-8B", "--method", "fl-lora", "--target-modules", "q_proj"],
        ["partition"],
        ["partition", "--data", data, "--num-clients", "3", "--csv", str(folder / "out.csv")],
    ]
    for words, (status, out, _) in zip(commands, light(folder, commands), strict=True):
        assert status == 0 and out, words
