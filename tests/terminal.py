"""A program in its own terminal, as a user sees it."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self

LIMIT = 120.0
"""Seconds; nothing here may take longer."""
SHOW, HIDE = b"\x1b[?25h", b"\x1b[?25l"


@contextmanager
def _heeded() -> Iterator[None]:
    """Lets child processes receive requests to stop, even if these tests run in the background or under nohup, which ignore some."""
    ignored = [number for number in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)


class Terminal:
    """Runs `python ARGUMENTS` in its own session, on a pseudo-terminal; a context that kills what is left of it."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self._master, slave = pty.openpty()
        with _heeded():
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=slave,
                stdout=slave,
                stderr=slave,
                start_new_session=True,
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": "1",
                    "HF_HUB_OFFLINE": "1",
                    "TERM": "xterm",
                    **(environment or {}),
                },
            )
        os.close(slave)
        self.printed = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self._master)

    def wait(self, ready: Callable[[], object]) -> None:
        """Reads what is printed until `ready()`."""
        end = time.monotonic() + LIMIT
        while not ready():
            assert self.process.poll() is None or self._read() or ready(), self.printed.decode(errors="replace")
            assert time.monotonic() < end, self.printed.decode(errors="replace")
            self._read()

    def wait_for(self, text: bytes) -> None:
        """Reads until `text` has been printed."""
        self.wait(lambda: text in self.printed)

    def type(self, text: bytes) -> None:
        """Types `text`."""
        os.write(self._master, text)

    def send(self, number: int) -> None:
        """Sends a signal to the program only."""
        os.kill(self.process.pid, number)

    def end(self) -> int:
        """The exit status, after the program has ended and all output is read."""
        self.wait(lambda: self.process.poll() is not None)
        while self._read():
            pass
        return self.process.returncode

    def _read(self) -> bool:
        if not select.select([self._master], [], [], 0.02)[0]:
            return False
        try:
            data = os.read(self._master, 1 << 16)
        except OSError:  # the other end is closed
            return False
        self.printed += data
        return bool(data)
