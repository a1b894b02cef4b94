"""The SuperLinks that `flwr run` leaves on a machine: its first simulation starts one in the background, which stays.

All later simulations run in it: with the packages and the variables of the environment that it was started from, and in the
folder that it was started in, where relative paths lead.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil

_PROGRAM, _LEFT = "flower-superlink", "local-superlink"
"""The program, and the folder below FLWR_HOME that Flower gives to those that it starts by itself."""
_NEW_SECONDS = 60.0
"""A SuperLink that is younger when its run begins was started for it: Flower gives it 15 seconds to start."""


@dataclass(frozen=True)
class LocalSuperLink:
    """A SuperLink that an earlier `flwr run` started: since when, in which folder, with which Python."""

    pid: int
    began: float
    folder: str
    python: str

    @property
    def ours(self) -> bool:
        """Whether it runs in the environment of this process."""
        return Path(self.python).parent == Path(sys.executable).parent and Path(self.python).exists()

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.began).strftime("%Y-%m-%d %H:%M:%S")
        return f"process {self.pid} since {since}, started in {self.folder} with {self.python}"


def local_superlinks() -> list[LocalSuperLink]:
    """Those of this machine that this process may look at, the oldest first."""
    return sorted(_those(psutil.process_iter()), key=lambda found: found.began)


def older_than_its_run(process: psutil.Process | None = None) -> LocalSuperLink | None:
    """The SuperLink that this process, or `process`, belongs to, if an earlier run left it; None if it was started for this run."""
    own = process or psutil.Process()
    found = next(iter(_those(own.parents())), None)
    return found if found is not None and own.create_time() - found.began > _NEW_SECONDS else None


def _those(processes: Iterable[psutil.Process]) -> Iterable[LocalSuperLink]:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            if not any(Path(part).name == _PROGRAM for part in command[:2]):
                continue
            if any(Path(part).parent.name == _LEFT for part in command):
                yield LocalSuperLink(process.pid, process.create_time(), process.cwd(), command[0])
