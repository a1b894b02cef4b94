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
    """Holds a folder that is there, from its making on until it is released, or left as a context.

    The system lets go of it too when the process ends, however it ends.

    Raises:
        RunError: somebody holds it already, or it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        try:
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise RunError(f"{folder / LOCK} cannot be written: {error.strerror}.") from error
        self._close = weakref.finalize(self, os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise RunError(f"{folder} is in use by another process: wait for it, or stop it.") from None
        except OSError as error:
            self.release()
            raise RunError(f"{folder / LOCK} cannot be locked: {error.strerror}.") from error

    def release(self) -> None:
        """Lets go of it; again does nothing."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def claimed(folder: Path) -> Lock:
    """The lock of a folder that is made if it is missing.

    Raises:
        RunError: as `Lock`, and if it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"Output directory {folder} cannot be written: {error.strerror}.") from error
    return Lock(folder)
