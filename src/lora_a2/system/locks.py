"""One process at a time in a folder."""

from __future__ import annotations

import fcntl
import os
import weakref
from pathlib import Path
from typing import Self

from lora_a2.errors import RunError

LOCK = ".lock"
"""The empty file that is locked. It is never replaced nor removed: two processes that lock it lock the same file."""


class Lock:
    """Locks an existing folder, until `release` or the end of the context.

    The system releases the lock too when the process ends, however it ends. With `wait` another process that holds it is
    waited for.

    Raises:
        RunError: another process holds the lock, or the folder cannot be written.
    """

    def __init__(self, folder: Path, wait: bool = False) -> None:
        try:
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise RunError(f"{folder / LOCK} cannot be written: {error.strerror}.") from error
        self._close = weakref.finalize(self, os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            self.release()
            raise RunError(f"{folder} is in use by another process: wait for it, or stop it.") from None
        except OSError as error:
            self.release()
            raise RunError(f"{folder / LOCK} cannot be locked: {error.strerror}.") from error

    def release(self) -> None:
        """Releases the lock; a second call does nothing."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def claimed(folder: Path) -> Lock:
    """The lock of a folder, which is created if it is missing.

    Raises:
        RunError: as `Lock`, or the folder cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"Output directory {folder} cannot be written: {error.strerror}.") from error
    return Lock(folder)


def is_locked(folder: Path) -> bool:
    """Whether another process, or another `Lock` of this one, holds the folder; it need not be writable."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:  # nobody ever locked it, or it is not ours to look at
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # many may ask at once
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
