"""Several clients side by side on a CPU, each on one core; or one after the other, where processes cannot be forked.

Small batches leave most of a multi-threaded product waiting, so clients side by side are faster than cores side by side. And
since each client is computed on one core, its result does not depend on how many cores there are.
"""

from __future__ import annotations

import os
import signal
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, Self, TypeVar

import torch

from lora_a2.engine.network import Network
from lora_a2.errors import RunError
from lora_a2.system import machine
from lora_a2.system.lifeline import end_with_parent

Item = TypeVar("Item")
Result = TypeVar("Result")


class Pool:
    """Runs work in this process, one item after the other; enter it for the time of a run.

    On a CPU it computes with one core while it is entered; the setting before is put back at the end.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self._threads = torch.get_num_threads()

    def __enter__(self) -> Self:
        if self.network.device.type == "cpu":
            torch.set_num_threads(1)
        return self

    def __exit__(self, *error: object) -> None:
        torch.set_num_threads(self._threads)

    def map(self, work: Callable[[Network, Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """`work(network, item)` for each item; results in the order of the items, each as soon as it can be had.

        Few items are taken ahead of the results, so that memory does not grow with their number. What `work` changes beside its
        result may be lost.
        """
        for item in items:
            yield work(self.network, item)


class ProcessPool(Pool):
    """As `Pool`, on this many forked processes side by side, of which each computes on one core.

    Every `map` forks anew, so that whatever `work` refers to is there without a copy; items and results are pickled. Threads
    would wait for each other whenever Python runs, and the more the more cores there are.
    """

    def __init__(self, network: Network, workers: int) -> None:
        super().__init__(network)
        self._workers = workers

    def map(self, work: Callable[[Network, Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """As `Pool.map`; at most two items a worker are under way or waiting to be taken.

        Raises:
            RunError: a process was killed.
        """
        grown: dict[int, int] = {}
        began = (os.getpid(), work, self.network)
        with ProcessPoolExecutor(self._workers, get_context("fork"), initializer=_begin, initargs=began) as executor:
            try:
                for result, process, growth in self._in_order(executor, items):
                    grown[process] = growth
                    yield result
            except BrokenProcessPool as error:
                raise RunError(
                    f"One of {self._workers} worker processes was killed, perhaps for want of memory: free some, or choose a "
                    "smaller --num-workers."
                ) from error
            except BaseException:  # nobody wants what they still compute, which may take minutes
                for worker in list((executor._processes or {}).values()):  # kill_workers, from Python 3.14 on
                    worker.kill()
                raise
            finally:
                executor.shutdown(cancel_futures=True)
                _Workers.peak = max(_Workers.peak, sum(grown.values()))

    def _in_order(self, executor: ProcessPoolExecutor, items: Iterable[object]) -> Iterator[tuple[Any, int, int]]:
        running: deque[Future[tuple[Any, int, int]]] = deque()
        for item in items:
            if len(running) >= 2 * self._workers:
                yield running.popleft().result()
            running.append(_submit(executor, item))
        while running:
            yield running.popleft().result()


def processes_work(device: torch.device) -> bool:
    """Whether `ProcessPool` can be used: where processes fork, and PyTorch has nothing but a CPU; an accelerator's threads survive no
    fork."""
    return device.type == "cpu" and machine.forks() and not torch.accelerator.is_available()


def peak_memory() -> int:
    """The most bytes of memory that this process has held, with what its workers held beside what they share with it."""
    return machine.peak_memory() + _Workers.peak


class _Workers:
    """`peak`, of the parent: the most that a map's workers held of their own. `work` and `size`, of a worker: what it does,
    and its size when it began."""

    peak = 0
    work: Callable[[object], Any]
    size = 0


def _submit(executor: ProcessPoolExecutor, item: object) -> Future[tuple[Any, int, int]]:
    with warnings.catch_warnings():
        # Newer Pythons warn of forks beside threads: the child must not need what another thread had locked. Ours only computes.
        warnings.simplefilter("ignore", DeprecationWarning)
        return executor.submit(_work, item)


def _begin(parent: int, work: Callable[[Network, Any], Any], network: Network) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends at once and silently; the parent tells of it
    end_with_parent(parent)
    machine.keep_freed_memory()
    torch.set_num_threads(1)
    _Workers.work = staticmethod(lambda item: work(network, item))
    _Workers.size = machine.peak_memory()


def _work(item: object) -> tuple[Any, int, int]:
    result = _Workers.work(item)
    # Growth leaves out pages that were shared and have been written to; what is private now leaves out what has been freed.
    return result, os.getpid(), max(machine.peak_memory() - _Workers.size, machine.private_memory())
