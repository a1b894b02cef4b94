"""One process at a time in a folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lora_a2.errors import RunError

LOCK = ".lock"
"""The empty file that is locked. It is never replaced nor removed: two processes that lock it lock the same file."""


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """As `locked`, of a folder that is made where it is missing.

    Raises:
        RunError: as `locked`, and where it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"Output directory {folder} cannot be written: {error.strerror}.") from error
    with locked(folder):
        yield


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a folder that is there; the system lets go of it when the process ends, however it ends.

    Raises:
        RunError: another process holds it, or it cannot be written.
    """
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise RunError(f"{folder / LOCK} cannot be written: {error.strerror}.") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise RunError(f"{folder} is in use by another process: wait for it, or stop it.") from None
    except OSError as error:
        os.close(descriptor)
        raise RunError(f"{folder / LOCK} cannot be locked: {error.strerror}.") from error
    try:
        yield
    finally:
        os.close(descriptor)
