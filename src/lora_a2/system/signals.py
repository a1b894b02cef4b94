"""Requests to stop: every one is an interruption that cleans up, and nothing interrupts the cleaning."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

REQUESTS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Ctrl-C, a service manager, and a terminal that is closed; not every system has all of them."""
INSISTING = 3
"""At this many requests the process ends at once, without cleaning up."""

_heard: list[int] = []
_watching = False


def status() -> int:
    """The exit status of a process that was asked to stop: 128 and the number of the first request, as of one that was ended
    by it; Ctrl-C's if there was none."""
    return 128 + (_heard[0] if _heard else signal.SIGINT)


@contextmanager
def interruptible(*, last: bool = False) -> Iterator[None]:
    """The first request to stop raises KeyboardInterrupt, as Ctrl-C does; later ones wait for what that cleans up, but not
    for ever: the third ends the process. What a process was started to ignore, as by nohup, stays ignored.

    Inside another one it changes nothing. After the `last` one requests are ignored: the process ends anyway.
    """
    global _watching
    if _watching:
        yield
        return
    owner = os.getpid()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a process that was forked for some work: nothing to clean up, nothing to say
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
    """Requests to stop are ignored: what runs here ends by itself, and soon."""
    with _handled(signal.SIG_IGN):
        yield


@contextmanager
def _handled(
    handler: Callable[[int, FrameType | None], Any] | signal.Handlers, afterwards: signal.Handlers | None = None
) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # Python delivers signals to the main thread alone
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
