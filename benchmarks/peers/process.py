"""Our end of a peer's process."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from exchange import Arrays, read_arrays
from peers.worker import MARK

BENCHMARKS = Path(__file__).resolve().parents[1]
PEERS_PYTHON = BENCHMARKS.parent / ".venv-peers" / "bin" / "python"
"""The environment with pfl-research and Flower, which need other versions than we pin."""

SIDE_BY_SIDE = {"pfl_research"}
"""Peers that use all cores with one process on each, under torchrun."""
OWN_PLACE = {"pfl_research", "flower_simulation"}


class PeerError(RuntimeError):
    """A peer could not be started, or died; the text names it and has the end of its output."""


class PeerProcess:
    """A peer that waits for rounds."""

    def __init__(self, name: str, process: subprocess.Popen[str], log: IO[str]) -> None:
        self.name, self._process, self._log = name, process, log
        self._answer()

    def round(self) -> float:
        """Seconds of a round, by the peer's own clock."""
        return float(self._ask("round"))

    def result(self) -> Arrays:
        """The last round's result."""
        return read_arrays(Path(self._ask("result")))

    def _ask(self, order: str) -> str:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # the peer died; the answer says why
            self._process.stdin.write(f"{order}\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                return line.removeprefix(MARK).strip()
        self._process.wait()
        self._log.seek(0)
        end = "".join(self._log.readlines()[-15:])
        raise PeerError(f"{self.name} ended with {self._process.returncode}. The end of its output:\n{end}")


@contextmanager
def started(name: str, folder: Path, dtype: str = "float32") -> Iterator[PeerProcess]:
    """The peer `name` on the workload in `folder`, running for the duration of the context.

    Raises:
        PeerError: it cannot be started.
    """
    command = [*_launcher(name), "-m", "peers.worker", name, str(folder), dtype]
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, text=True, env=_environment(name)) as process,
    ):
        try:
            yield PeerProcess(name, process, log)
        finally:
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                process.stdin.close()  # the peer ends at the end of its input
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.terminate()


def _environment(name: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(BENCHMARKS), os.environ.get("PYTHONPATH")]))
    found = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    found |= {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    if name in OWN_PLACE:
        found["OMP_NUM_THREADS"] = "1"  # they use the cores by processes
    return found


def _launcher(name: str) -> list[str]:
    if name not in OWN_PLACE:
        return [sys.executable]
    if not PEERS_PYTHON.is_file():
        raise PeerError(f"{name} needs its own environment: run `make .venv-peers/.installed`.")
    if name not in SIDE_BY_SIDE:
        return [str(PEERS_PYTHON)]
    cores = len(os.sched_getaffinity(0))
    return [str(PEERS_PYTHON), "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={cores}"]
