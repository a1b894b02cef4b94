"""Runs a batch: one run after another in this process, or several at a time in processes of their own.

A run's result does not depend on which of the two it was. In its own process a run that is killed, for memory say, takes no
other with it, and what it printed lies in logs/NAME.log.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager
from pathlib import Path
from queue import SimpleQueue

from lora_a2.federation.observer import Observer
from lora_a2.studies.batch import Batch, PlannedRun
from lora_a2.system.machine import cores
from lora_a2.tasks.registry import get_task

Said = Callable[[str], None]


def run_here(batch: Batch, display: Callable[[], AbstractContextManager[Observer]], said: Said) -> None:
    """One after another in this process, each under a display of its own."""
    todo = batch.open_runs()
    for number, run in enumerate(todo, start=1):
        said(f"{number}/{len(todo)} {run.name}")
        with display() as observer:
            run.attempt(observer)
        if run.failure() is not None:
            said(_outcome(run))


def run_apart(batch: Batch, processes: int, devices: Sequence[str], said: Said) -> None:
    """`processes` at a time, each on its share of the cores, and on one of the `devices` in turn if there are some."""
    todo = batch.open_runs()
    workers = _Workers(batch.path, processes, devices)
    with ThreadPoolExecutor(processes) as executor:
        try:
            futures = {executor.submit(workers.work, run): run for run in todo}
            for number, future in enumerate(as_completed(futures), start=1):
                future.result()
                said(f"{number}/{len(todo)} {_outcome(futures[future])}")
        except BaseException:
            workers.stop()
            executor.shutdown(cancel_futures=True)
            raise


def _outcome(run: PlannedRun) -> str:
    summary, failure = run.summary(), run.failure()
    if failure is not None:
        return f"{run.name}: failed: {failure['error']}: {failure['message']}"
    if summary is None:
        return f"{run.name}: not finished"
    task = get_task(summary.task)
    return f"{run.name}: {task.shown} {task.show(summary.score)}"


class _Workers:
    """The processes under way, and the slots (cores, device) that are free."""

    def __init__(self, path: Path, processes: int, devices: Sequence[str]) -> None:
        self._path = path
        self._slots: SimpleQueue[tuple[str, str]] = SimpleQueue()
        for slot, share in enumerate(shares(cores(), processes)):
            self._slots.put((",".join(map(str, share)), devices[slot % len(devices)] if devices else ""))
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def work(self, run: PlannedRun) -> None:
        """A run in its own process; returns when that ends."""
        slot = self._slots.get()
        try:
            if not self._stopped:
                self._work(run, *slot)
        finally:
            self._slots.put(slot)

    def _work(self, run: PlannedRun, cores: str, device: str) -> None:
        log = self._path / "logs" / f"{run.name}.log"
        log.parent.mkdir(exist_ok=True)
        batch = [str(self._path), run.name, cores, device]
        command = [sys.executable, "-m", "lora_a2.studies.worker", str(os.getpid()), *batch]
        with log.open("ab") as file:
            # Its own session: Ctrl-C reaches this process alone, which passes it on.
            process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
            self._running.add(process)
            if self._stopped:  # while it was started
                process.terminate()
            status = process.wait()
            self._running.discard(process)
        if status and not self._stopped and run.failure() is None:
            what = f"signal {-status}" if status < 0 else f"status {status}"
            run.fail("ProcessError", f"its process ended with {what}; see {log}")

    def stop(self) -> None:
        """Interrupts what runs; it can be continued."""
        self._stopped = True
        for process in list(self._running):
            process.terminate()


def shares(cores: Sequence[int], processes: int) -> list[list[int]]:
    """The cores dealt to this many processes, evenly and without overlap; all of them to each where there are too few."""
    if processes > len(cores):
        return [list(cores)] * processes
    return [list(cores[slot::processes]) for slot in range(processes)]
