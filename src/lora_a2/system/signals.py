"""Requests to stop: each is an interruption with a clean-up that nothing interrupts."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

REQUESTS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Sent by Ctrl-C, a service manager, and a terminal that closes; not every system has all of them."""
INSISTING = 3
"""After this many requests the process ends at once, without a clean-up."""

_heard: list[int] = []
_watching = False


def status() -> int:
    """The exit status of a process that was asked to stop: 128 + the first request's signal number, as if the signal had
    ended it; Ctrl-C's if there was none."""
    return 128 + (_heard[0] if _heard else signal.SIGINT)


@contextmanager
def interruptible(*, last: bool = False) -> Iterator[None]:
    """The first request to stop raises KeyboardInterrupt, as Ctrl-C does; the second waits for the clean-up; the third ends
    the process. Signals that the process was started to ignore, as by nohup, stay ignored.

    Nested uses have no effect. After the context with `last`, requests are ignored: the process ends anyway.
    """
    global _watching
    if _watching:
        yield
        return
    owner = os.getpid()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a forked child: nothing to clean up or to report
            os._exit(128 + number)
        _heard.append(number)
        if len(_heard) == 1:
            raise KeyboardInterrupt
        if len(_heard) >= INSISTING:
            os._exit(status())

    _heard.clear()
    _watching = True
    try:
        with _handled(interrupt, afterwards=signal.SIG_IGN if last else None):
            yield
    finally:
        _watching = False


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ignores requests to stop: the work in this context ends soon by itself."""
    with _handled(signal.SIG_IGN):
        yield


@contextmanager
def _handled(
    handler: Callable[[int, FrameType | None], Any] | signal.Handlers, afterwards: signal.Handlers | None = None
) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # Python delivers signals only to the main thread
        yield
        return
    before = {number: signal.getsignal(number) for number in REQUESTS}
    before = {number: former for number, former in before.items() if former is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former if afterwards is None else afterwards)
