"""Several clients side by side on a CPU, each on one core.

Small batches leave most of a multi-threaded product waiting, so clients side by side are faster than cores side by side. And
since each client is computed on one core, its result does not depend on how many cores there are.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Self, TypeVar

import torch

from lora_a2.engine.classifier import Classifier
from lora_a2.errors import RunError
from lora_a2.system.lifeline import end_with_parent

Item = TypeVar("Item")
Result = TypeVar("Result")


def usual_workers(device: torch.device) -> int:
    """One worker a core on a CPU; one in all on an accelerator, which whole cohorts keep busy."""
    return len(os.sched_getaffinity(0)) if device.type == "cpu" else 1


class Pool:
    """Runs work on `workers` threads, each with a classifier of its own; enter it for the time of a run.

    On a CPU every worker computes with one core while the pool is entered; the setting before is put back at the end.
    """

    def __init__(self, classifier: Classifier, workers: int) -> None:
        self.classifier, self.workers = classifier, workers
        self._single = classifier.device.type == "cpu"
        self._threads = torch.get_num_threads()

    def __enter__(self) -> Self:
        if self._single:
            torch.set_num_threads(1)
        self._free: SimpleQueue[Classifier] = SimpleQueue()
        for worker in range(self.workers):
            self._free.put(self.classifier if worker == 0 else self.classifier.twin())
        self._executor = ThreadPoolExecutor(self.workers, "lora-a2-worker", initializer=self._start)
        return self

    def __exit__(self, *error: object) -> None:
        self._executor.shutdown(cancel_futures=True)
        torch.set_num_threads(self._threads)

    def _start(self) -> None:
        if self._single:
            torch.set_num_threads(1)

    def map(self, work: Callable[[Classifier, Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """`work(classifier, item)` for each item; results in the order of the items, each as soon as it can be had.

        At most two items a worker are under way or waiting to be taken, so that memory does not grow with their number. What
        `work` changes beside its result may be lost.
        """
        return self._in_order(lambda item: self._executor.submit(self._run, work, item), items)

    def _run(self, work: Callable[[Classifier, Item], Result], item: Item) -> Result:
        classifier = self._free.get()
        try:
            return work(classifier, item)
        finally:
            self._free.put(classifier)

    def _in_order(self, submit: Callable[[Item], Future[Result]], items: Iterable[Item]) -> Iterator[Result]:
        running: deque[Future[Result]] = deque()
        for item in items:
            if len(running) >= 2 * self.workers:
                yield running.popleft().result()
            running.append(submit(item))
        while running:
            yield running.popleft().result()


class ProcessPool(Pool):
    """As `Pool`, on processes: threads wait for each other whenever Python runs, and the more the more cores there are.

    Every `map` forks anew, so that whatever `work` refers to is there without a copy; items and results are pickled.
    """

    def __enter__(self) -> Self:
        torch.set_num_threads(1)
        return self

    def __exit__(self, *error: object) -> None:
        torch.set_num_threads(self._threads)

    def map(self, work: Callable[[Classifier, Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """As `Pool.map`.

        Raises:
            RunError: a process was killed.
        """
        grown: dict[int, int] = {}
        began = (os.getpid(), work, self.classifier)
        with ProcessPoolExecutor(self.workers, get_context("fork"), initializer=_begin, initargs=began) as executor:
            try:
                for result, process, growth in self._in_order(lambda item: _submit(executor, item), items):
                    grown[process] = growth
                    yield result
            except BrokenProcessPool as error:
                raise RunError(
                    f"One of {self.workers} worker processes was killed, perhaps for want of memory: free some, or choose a "
                    "smaller --num-workers."
                ) from error
            except BaseException:  # nobody wants what they still compute, which may take minutes
                for worker in list((executor._processes or {}).values()):  # kill_workers, from Python 3.14 on
                    worker.kill()
                raise
            finally:
                executor.shutdown(cancel_futures=True)
                _Workers.peak = max(_Workers.peak, sum(grown.values()))


def processes_work(device: torch.device) -> bool:
    """Whether `ProcessPool` can be used: on Linux, where PyTorch has nothing but a CPU; an accelerator's threads survive no fork."""
    return device.type == "cpu" and sys.platform == "linux" and not torch.accelerator.is_available()


def peak_memory() -> int:
    """The most bytes of memory that this process has held, with what its workers held beside what they share with it."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + _Workers.peak


class _Workers:
    """`peak`, of the parent: the most that a map's workers held of their own. `work` and `size`, of a worker: what it does,
    and its size when it began."""

    peak = 0
    work: Callable[[Any], Any]
    size = 0


def _submit(executor: ProcessPoolExecutor, item: Any) -> Future[Any]:
    with warnings.catch_warnings():
        # Newer Pythons warn of forks beside threads: the child must not need what another thread had locked. Ours only computes.
        warnings.simplefilter("ignore", DeprecationWarning)
        return executor.submit(_work, item)


def _begin(parent: int, work: Callable[[Classifier, Any], Any], classifier: Classifier) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends at once and silently; the parent tells of it
    end_with_parent(parent)
    _keep_freed_memory()
    torch.set_num_threads(1)
    _Workers.work = staticmethod(lambda item: work(classifier, item))
    _Workers.size = _resident()


def _keep_freed_memory() -> None:
    """Lets what one step has freed serve the next: glibc gives it back to the kernel, which then has to clear it page by page."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc; elsewhere there is nothing to set
        libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, at its upper limit
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def _work(item: Any) -> tuple[Any, int, int]:
    result = _Workers.work(item)
    # Growth leaves out pages that were shared and have been written to; what is private now leaves out what has been freed.
    return result, os.getpid(), max(_resident() - _Workers.size, _private())


def _resident() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _private() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
