"""If a process that starts others is killed, no descendant is left, nor their keys and data."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

pytest.importorskip("flwr", reason="needs lora-a2[flower]")

from faults import tiny_config
from federation import save_data, save_model
from lora_a2.flower.processes import free_port
from needs import NGINX

LIMIT = 120.0
"""Seconds; nothing here may take longer."""
PROGRAM = str(Path(sys.executable).with_name("lora-a2"))

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the kernel ends children with their parent on Linux only"
)

HOLDER = """
import sys
from lora_a2.flower.guardian import guarded_home
from lora_a2.flower.processes import Processes
grandchild = "import signal; print(1, flush=True); signal.pause()"
child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}], start_new_session=True)"
with guarded_home() as home, Processes(home) as processes:
    (home / "key").write_text("secret")
    processes.start("child", ["python", "-c", child])
    processes.wait_until(lambda: b"1" in processes.log("child").read_bytes(), "the grandchild")
    print(home, flush=True)
    sys.stdin.read()
"""
"""Holds a deployment of a child and its child, which is in its own session."""


def wait(ready: Callable[[], bool], what: str, holder: subprocess.Popen[str]) -> None:
    """Waits, with a limit."""
    end = time.monotonic() + LIMIT
    while not ready():
        assert holder.poll() is None, holder.communicate()
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.02)


def kill(holder: subprocess.Popen[str], expected: int) -> None:
    """SIGKILL to the parent of at least this many processes; asserts that all of them end."""
    started = psutil.Process(holder.pid).children(recursive=True)
    assert len(started) >= expected, started
    holder.kill()
    _, left = psutil.wait_procs(started, timeout=LIMIT)  # before the holder is waited for: until then it is a zombie
    holder.communicate()
    assert not left


def assert_nothing_is_left(folder: Path) -> None:
    """No temporary file, and no process that names one."""
    assert list((folder / "tmp").iterdir()) == []
    assert not [process for process in psutil.process_iter(["cmdline"]) if str(folder / "tmp") in str(process.info)]


def hold(folder: Path, *command: str) -> subprocess.Popen[str]:
    """Starts a program with its own folder for temporary files."""
    (folder / "tmp").mkdir()
    environment = {**os.environ, "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )


@pytest.mark.parametrize("ended", ["killed", "done"])
def test_a_guarded_home_goes_with_all_that_runs_there(tmp_path: Path, ended: str) -> None:
    holder = hold(tmp_path, sys.executable, "-c", HOLDER)
    assert holder.stdout is not None
    home = Path(holder.stdout.readline().strip())
    assert (home / "key").read_text() == "secret"
    if ended == "killed":
        kill(holder, expected=3)  # child, grandchild, guardian
    else:
        started = psutil.Process(holder.pid).children(recursive=True)
        holder.communicate()
        assert holder.returncode == 0
        assert not psutil.wait_procs(started, timeout=LIMIT)[1]
    assert_nothing_is_left(tmp_path)


FAMILY = """
import os, signal
from lora_a2.system.lifeline import end_with_parent
parent = os.getpid()
if os.fork() == 0:
    end_with_parent(parent)
    print("ready", flush=True)
signal.pause()
"""


def test_a_process_ends_with_its_parent(tmp_path: Path) -> None:
    holder = hold(tmp_path, sys.executable, "-c", FAMILY)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "ready\n"
    kill(holder, expected=1)


def test_a_process_whose_parent_has_gone_already_ends_at_once() -> None:
    code = "from lora_a2.system.lifeline import end_with_parent; end_with_parent(1); print('alive')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "")


def test_what_a_supernode_started_ends_with_it(tmp_path: Path) -> None:
    nowhere = ["--insecure", "--superlink=127.0.0.1:1", f"--port={free_port()}"]
    holder = hold(tmp_path, sys.executable, "-m", "lora_a2.flower.supernode", *nowhere)
    wait(lambda: bool(psutil.Process(holder.pid).children()), "its SuperExec", holder)
    kill(holder, expected=1)


@pytest.mark.slow
def test_the_processes_of_a_sweep_end_with_it(tmp_path: Path) -> None:
    (tmp_path / "sweep.toml").write_text(
        'title = "Two"\n[run]\nnum-server-rounds = 1000\nlocal-epochs = 50\nnum-clients = 2\npartitioner = "iid"\n'
        f'data = "{save_data(tmp_path / "data.csv")}"\nmodel = "{save_model(tmp_path / "model")}"\n'
        '[arms.a]\nmethod = "fl-lora"\n[arms.b]\nmethod = "ffa-lora"\n'
    )
    out = tmp_path / "out"
    sweep = hold(tmp_path, PROGRAM, "sweep", str(tmp_path / "sweep.toml"), "--processes", "2", "--output-dir", str(out))
    wait(lambda: len(list(out.rglob("rounds.jsonl"))) == 2, "two runs", sweep)
    kill(sweep, expected=2)


@pytest.mark.slow
@NGINX
@pytest.mark.parametrize("moment", ["early", "under way"])
def test_a_local_deployment_that_is_killed_leaves_its_run_alone(tmp_path: Path, moment: str) -> None:
    run = tmp_path / "run"
    config = tiny_config(tmp_path / "given", num_clients=2, num_server_rounds=1000, output_dir=str(run))
    given = config.model_dump(mode="json", by_alias=True, exclude_unset=True)
    del given["num-clients"]
    options = [f"--{key}={value}" for key, value in given.items()]
    holder = hold(tmp_path, PROGRAM, "flower", "local-deployment", "--nodes", "2", *options)
    if moment == "early":
        wait(lambda: bool(list((tmp_path / "tmp").glob("*/superlink.sqlite"))), "a SuperLink", holder)
    else:
        wait(lambda: (run / "rounds.jsonl").exists(), "a round", holder)
    kill(holder, expected=3 if moment == "early" else 11)
    assert_nothing_is_left(tmp_path)
