"""Takes a deployment down where the process that started it could not: python -m lora_a2.flower.guardian HOME.

Whoever keeps a deployment in HOME holds the other end of the guardian's standard input. A line on it says that all is done;
its end without one says that the holder was killed. Then every process that has HOME for its `FLWR_HOME` is killed, and
HOME is removed with the keys and the data in it.
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
    """A private temporary folder that goes in the end, also where this process is killed, and with it all that runs there."""
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
    """Waits for the end of standard input, and does what is left to do."""
    for number in REQUESTS:
        signal.signal(number, signal.SIG_IGN)
    if sys.stdin.buffer.read():
        return
    kill_members(Path(home))
    shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1])
