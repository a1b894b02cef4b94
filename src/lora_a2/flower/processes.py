"""The processes of a deployment on one machine: started, watched and ended together.

Flower's processes start others, some in their own sessions, which outlive a killed parent. All inherit the environment, and
with it `FLWR_HOME`, a folder that only this deployment uses: every process that still has it at the end is ended too.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from lora_a2.errors import RunError
from lora_a2.system.signals import undisturbed

GRACE_SECONDS = 10.0
"""How long a process may take to end before it is killed."""

QUIET = {
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
}
"""Flower installs nothing, does not look for updates and sends no telemetry."""


def program(name: str) -> str:
    """The path of a command in this Python's environment, whatever PATH says; an absolute path is returned as it is.

    Raises:
        RunError: it is not installed.
    """
    path = Path(sys.executable).parent / name  # `name` itself if that is absolute
    if not path.exists():
        raise RunError(f"There is no {name} beside {sys.executable}: install lora-a2[flower].")
    return str(path)


def free_port() -> int:
    """A TCP port of the loopback that is free at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Processes:
    """Named processes, each with a log file, that share one `FLWR_HOME`; as a context it ends them all."""

    def __init__(self, home: Path, extra: Mapping[str, str] | None = None) -> None:
        self.home = home
        self.logs = home / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("FLWR_INTERNAL_")}
        self.environment = {**inherited, **QUIET, "FLWR_HOME": str(home), "PATH": path, **(extra or {})}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._lasting: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with undisturbed():
            self.stop_all()

    def start(self, name: str, command: Sequence[str], *, lasting: bool = True) -> None:
        """Starts a process in the background; its output is appended to `log(name)`. Unless `lasting`, it may end early."""
        if self.alive(name):
            raise RunError(f"{name} is already running.")
        with self.log(name).open("ab") as log:
            self._running[name] = subprocess.Popen(
                [program(command[0]), *command[1:]],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that Ctrl-C reaches only this process, which then ends the others in order
            )
        (self._lasting.add if lasting else self._lasting.discard)(name)

    def call(self, command: Sequence[str], limit: float = 60.0) -> str:
        """Runs a command to its end and returns what it printed.

        Raises:
            RunError: it failed, or took longer than `limit` seconds.
        """
        try:
            done = subprocess.run(
                [program(command[0]), *command[1:]],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=limit,
                check=False,
                text=True,
            )
        except subprocess.TimeoutExpired as error:
            raise RunError(
                f"'{' '.join(command[:3])}' took longer than {limit:g} s: {_last_words(error.output)}"
            ) from None
        if done.returncode:
            raise RunError(f"'{' '.join(command[:3])}' failed: {_last_words(done.stdout)}")
        return done.stdout

    def log(self, name: str) -> Path:
        """The file with a process's output."""
        return self.logs / f"{name}.log"

    def alive(self, name: str) -> bool:
        """Whether the process was started and has not ended."""
        return name in self._running and self._running[name].poll() is None

    def check(self) -> None:
        """Checks that every lasting process still runs.

        Raises:
            RunError: one has ended; the message has its last line of output.
        """
        for name, process in self._running.items():
            if name in self._lasting and process.poll() is not None:
                raise RunError(
                    f"{name} ended with status {process.returncode}: {_last_words(self.log(name).read_bytes())}"
                )

    def finish(self, name: str) -> None:
        """Collects a process that ends by itself.

        Raises:
            RunError: it ended with an error.
        """
        process = self._running.pop(name)
        if process.wait():
            raise RunError(f"{name} ended with status {process.returncode}: {_last_words(self.log(name).read_bytes())}")

    def wait_until(self, ready: Callable[[], bool], what: str, limit: float = 60.0) -> None:
        """Waits until `ready()`, with all processes alive.

        Raises:
            RunError: a process ended, or it took longer than `limit` seconds.
        """
        end = time.monotonic() + limit
        while not ready():
            self.check()
            if time.monotonic() > end:
                raise RunError(f"{what} took longer than {limit:g} s; see the logs in {self.logs}.")
            time.sleep(0.05)

    def kill(self, name: str) -> None:
        """Sends SIGKILL to a process and all that it started, as if the machine lost power."""
        process = self._running.pop(name)
        _kill(_family(process.pid))
        process.wait()

    def stop(self, name: str) -> None:
        """Sends SIGTERM to a process, then SIGKILL if it does not end, and to processes that it leaves behind."""
        process = self._running.pop(name)
        family = _family(process.pid)
        _terminate([process])
        _kill(family)
        process.wait()

    def stop_all(self) -> None:
        """Ends every process, the last started first, and kills processes that they leave behind."""
        families = [member for process in self._running.values() for member in _family(process.pid)]
        _terminate(list(reversed(self._running.values())))
        _kill(families)
        kill_members(self.home)
        for process in self._running.values():
            process.wait()
        self._running.clear()

    def members(self) -> list[psutil.Process]:
        """Every visible process of this machine that has our `FLWR_HOME`, except this one."""
        return members(self.home)


def members(home: Path) -> list[psutil.Process]:
    """Every visible process of this machine whose `FLWR_HOME` is `home`, except this one."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get("FLWR_HOME") == str(home):
                found.append(process)
    return found


def kill_members(home: Path) -> None:
    """Sends SIGKILL to every process whose `FLWR_HOME` is `home`, until none is left."""
    end = time.monotonic() + GRACE_SECONDS
    while (found := members(home)) and time.monotonic() < end:
        _kill(found)


def _family(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _terminate(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Sends SIGTERM to processes and waits for them, `GRACE_SECONDS` in all."""
    end = time.monotonic() + GRACE_SECONDS
    for process in processes:
        process.terminate()
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, end - time.monotonic()))


def _kill(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=GRACE_SECONDS)


def _last_words(output: bytes | str | None) -> str:
    """Why a program ended, from its output: Flower's reason, or else the last line."""
    text = output.decode(errors="replace") if isinstance(output, bytes) else output or ""
    _, found, reason = text.rpartition("Exit Code: ")
    if found:
        return " ".join(reason.partition("\n\n")[0].split("\n")[1:])
    lines = [line.strip() for line in text.splitlines()]
    boxed = [line.strip("│ ") for line in lines if line.startswith("│")]  # Flower's command line draws boxes
    return " ".join(boxed) or next((line for line in reversed(lines) if line), "it printed nothing.")
