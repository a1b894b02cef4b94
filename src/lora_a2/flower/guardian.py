"""Takes a deployment down if the process that started it was killed: python -m lora_a2.flower.guardian HOME.

The process that owns the deployment in HOME holds the other end of the guardian's standard input. A line means that it has
cleaned up; end of file without a line means that it was killed. Then the guardian kills every process whose `FLWR_HOME` is
HOME, and removes HOME with the keys and data in it.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lora_a2.flower.processes import kill_members
from lora_a2.system.signals import REQUESTS, undisturbed


@contextmanager
def guarded_home() -> Iterator[Path]:
    """A private temporary folder, removed at the end with all processes that use it, even if this process is killed."""
    home = Path(tempfile.mkdtemp(prefix="lora-a2-"))
    guardian = subprocess.Popen(
        [sys.executable, "-m", "lora_a2.flower.guardian", str(home)], stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        yield home
    finally:
        with undisturbed():
            shutil.rmtree(home)
            guardian.communicate(b"done\n")


def main(home: str) -> None:
    """Waits for the end of standard input, and cleans up if the owner did not."""
    for number in REQUESTS:
        signal.signal(number, signal.SIG_IGN)
    if sys.stdin.buffer.read():
        return
    kill_members(Path(home))
    shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1])
