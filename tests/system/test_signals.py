"""Requests to stop, sent to real processes in a terminal: one line, the cursor restored, no traceback, no process left."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from federation import save_data, save_model
from lora_a2.runs.directory import RunDirectory
from terminal import HIDE, LIMIT, SHOW, Terminal

STAND_IN = """
import os, sys, time, types, click
from lora_a2.cli import main
@click.command()
def command():
    try:
        print("\\x1b[?25lready", flush=True)
        while True:
            time.sleep(0.01)
    finally:
        print("cleaning", flush=True)
        os.read(0, 1)
module = types.ModuleType("lora_a2.commands.run")
module.command = command
sys.modules["lora_a2.commands.run"] = module
sys.argv = ["lora-a2", "run"]
status = main()
print("ended", flush=True)
os.read(0, 1)
sys.exit(status)
"""
"""The command line with a command that waits and prints its progress; a typed line lets it continue."""

EVERY = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])


@EVERY
def test_a_request_to_stop_is_one_line(number: int) -> None:
    """However often it is sent: during the work, during the clean-up, and at the end."""
    with Terminal(["-c", STAND_IN]) as terminal:
        terminal.wait_for(b"ready")
        terminal.send(number)
        terminal.wait_for(b"cleaning")
        terminal.send(number)
        terminal.type(b"\n")
        terminal.wait_for(b"ended")
        terminal.send(number)
        terminal.type(b"\n")
        assert terminal.end() == 128 + number
        assert terminal.printed.count(b"Interrupted.\r\n") == 1
        assert terminal.printed.rindex(SHOW) > terminal.printed.rindex(HIDE)
        assert b"Traceback" not in terminal.printed


def test_whoever_insists_need_not_wait() -> None:
    with Terminal(["-c", STAND_IN]) as terminal:
        terminal.wait_for(b"ready")
        terminal.send(signal.SIGTERM)
        terminal.wait_for(b"cleaning")
        terminal.send(signal.SIGINT)
        terminal.send(signal.SIGHUP)  # another one, as a second of the same kind may be lost while the first is pending
        assert terminal.end() == 128 + signal.SIGTERM
        assert b"Traceback" not in terminal.printed


def test_what_nohup_ignores_stays_ignored() -> None:
    ignoring = f"import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); os.execv(sys.executable, [sys.executable, '-c', {STAND_IN!r}])"
    with Terminal(["-c", ignoring]) as terminal:
        terminal.wait_for(b"ready")
        terminal.send(signal.SIGHUP)
        terminal.send(signal.SIGTERM)
        terminal.wait_for(b"cleaning")
        terminal.type(b"\n\n")
        assert terminal.end() == 128 + signal.SIGTERM


def test_results_that_cannot_be_printed_name_standard_output() -> None:
    code = "import sys; from lora_a2.cli import main; sys.exit(main())"
    with open("/dev/full", "wb") as full:
        ended = subprocess.run(
            [sys.executable, "-c", code, "--help"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (
        ended.stderr == "lora-a2: error: No space left on device: standard output, or the folder of temporary files\n"
    )
    assert ended.returncode == 2


# --- the commands themselves -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options of a long run."""
    folder = tmp_path_factory.mktemp("signals")
    model, data = save_model(folder / "model"), save_data(folder / "texts.csv")
    options = {"data": data, "model": model, "dtype": "float32", "num-clients": 2, "num-server-rounds": 100_000, "r": 4}
    return [f"--{name}={value}" for name, value in options.items()]


def started(arguments: list[str]) -> Terminal:
    return Terminal(["-c", "import sys; from lora_a2.cli import main; sys.exit(main())", *arguments])


def rounds(run: Path) -> Callable[[], bool]:
    """Whether a run has finished some rounds."""
    return lambda: (run / "rounds.jsonl").exists() and (run / "rounds.jsonl").read_bytes().count(b"\n") > 1


def family(process: int) -> list[psutil.Process]:
    return psutil.Process(process).children(recursive=True)


def interrupted(terminal: Terminal, number: int, times: int) -> str:
    """Sends a signal to a working command; returns the last line that it prints."""
    children = family(terminal.process.pid)
    for _ in range(times):
        terminal.send(number)
    assert terminal.end() == 128 + number
    assert not psutil.wait_procs(children, timeout=LIMIT)[1], "a process is left behind"
    assert b"Traceback" not in terminal.printed
    assert b"Exception" not in terminal.printed
    if HIDE in terminal.printed:
        assert terminal.printed.rindex(SHOW) > terminal.printed.rindex(HIDE)
    lines = terminal.printed.replace(SHOW, b"").decode().splitlines()
    return [line.rpartition("\x1b[2K")[2] for line in lines if line.strip()][-1]


@pytest.mark.slow
@EVERY
@pytest.mark.parametrize("times", [1, 2])
def test_run(number: int, times: int, given: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    with started(["run", *given, "--output-dir", str(run)]) as terminal:
        terminal.wait(rounds(run))
        said = interrupted(terminal, number, times)
    assert said == f"Interrupted; continue with: lora-a2 resume {run}"


@pytest.mark.slow
@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_resume(quiet: list[str], given: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    with started(["run", *given, "--output-dir", str(run), *quiet]) as terminal:
        terminal.wait(rounds(run))
        interrupted(terminal, signal.SIGTERM, 1)
    before = len((run / "rounds.jsonl").read_bytes())
    with started(["resume", str(run), *quiet]) as terminal:
        terminal.wait(lambda: len((run / "rounds.jsonl").read_bytes()) > before)
        assert interrupted(terminal, signal.SIGTERM, 2) == f"Interrupted; continue with: lora-a2 resume {run}"
    RunDirectory.open(run)


@pytest.mark.slow
def test_compare(given: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "compare"
    with started(["compare", "--methods", "ffa-lora,fl-lora", *given, "--output-dir", str(folder)]) as terminal:
        terminal.wait(rounds(folder / "ffa-lora"))
        with started(["compare", "--resume", str(folder), "--quiet"]) as other:
            assert other.end() == 2
            assert b"is in use by another process" in other.printed
        said = interrupted(terminal, signal.SIGTERM, 1)
    assert said == f"Interrupted; continue with: lora-a2 compare --resume {folder}"


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_sweep(processes: int, given: list[str], tmp_path: Path) -> None:
    (tmp_path / "two.toml").write_text('title = "Two"\n[grid]\nseed = [0, 1]\n[arms.ffa]\nmethod = "ffa-lora"\n')
    folder = tmp_path / "sweep"
    how = ["--processes", str(processes), "--output-dir", str(folder)]
    with started(["sweep", str(tmp_path / "two.toml"), *given, *how]) as terminal:
        for seed in range(processes):
            terminal.wait(rounds(folder / "runs" / f"ffa-seed{seed}"))
        said = interrupted(terminal, signal.SIGTERM, 1)
    assert said == f"Interrupted; continue with: lora-a2 sweep --resume {folder}"
    assert not (folder / "runs" / "failures").exists(), "an interruption is no failure"
    for log in folder.glob("runs/logs/*"):
        assert "Traceback" not in log.read_text()


@pytest.mark.slow
@EVERY
def test_node(number: int, given: list[str], tmp_path: Path) -> None:
    (tmp_path / "own").mkdir(mode=0o700)
    socket = tmp_path / "own" / "worker.sock"
    own = [option for option in given if option.startswith(("--data", "--model"))]
    with started(["node", *own, "--socket", str(socket), "--store", str(tmp_path / "store")]) as terminal:
        terminal.wait(socket.exists)
        terminal.wait_for(b"Ready")
        interrupted(terminal, number, 2)
    assert not socket.exists()
