"""A list of checks that an operator runs before a run: a line each, and all of them, however many fail."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lora_a2.errors import LoraA2Error
from lora_a2.system.files import write_atomic

State = Literal["ok", "failed", "not checked"]


@dataclass(frozen=True)
class Finding:
    """What came of one check: what was looked at, and a line on what was found, or on what is wrong and what to do."""

    what: str
    state: State
    said: str


class NotChecked(LoraA2Error):
    """A check that needs something that was not given; the text says what."""


Check = tuple[str, Callable[[], str]]
"""What is looked at; and the look, which returns a line, or raises LoraA2Error or OSError with one."""


def found(what: str, look: Callable[[], str]) -> Finding:
    """What comes of a look."""
    try:
        return Finding(what, "ok", look())
    except NotChecked as reason:
        return Finding(what, "not checked", str(reason))
    except LoraA2Error as error:
        return Finding(what, "failed", str(error))
    except OSError as error:
        named = f": {error.filename}" if error.filename else ""
        return Finding(what, "failed", f"{error.strerror or error}{named}")


def writable(folder: Path) -> str:
    """A line on a folder that can be created and written to, and how much room there is.

    Raises:
        OSError: it cannot.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    trial = folder / ".lora-a2-check"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomic(trial, b"")
        free = shutil.disk_usage(folder).free
    finally:
        trial.unlink(missing_ok=True)
        for path in missing:  # innermost first: nothing is left of a folder that was only tried
            if path.exists():
                path.rmdir()
    return f"{folder} can be written; {free / 1e9:.1f} GB are free there."


def checked(checks: Iterator[Check]) -> Iterator[Finding]:
    """The findings, one after the other."""
    return (found(what, look) for what, look in checks)
