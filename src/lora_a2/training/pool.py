"""Several clients side by side on a CPU: a worker is a thread that computes on one core, with a classifier of its own.

Small batches leave most of a multi-threaded product waiting, so clients side by side are faster than cores side by side. And
since each client is computed on one core, its result does not depend on how many cores there are.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

import torch

from lora_a2.model.classifier import Classifier

Item = TypeVar("Item")
Result = TypeVar("Result")


def usual_workers(device: torch.device) -> int:
    """One worker a core on a CPU; one in all on an accelerator, which whole cohorts keep busy."""
    return len(os.sched_getaffinity(0)) if device.type == "cpu" else 1


class Pool:
    """Runs work on `workers` threads; enter it for the time of a run.

    On a CPU every thread computes with one core while the pool is entered; the setting before is put back at the end.
    """

    def __init__(self, classifier: Classifier, workers: int) -> None:
        self._free: SimpleQueue[Classifier] = SimpleQueue()
        for worker in range(workers):
            self._free.put(classifier if worker == 0 else classifier.twin())
        self.workers = workers
        self._single = classifier.device.type == "cpu"
        self._threads = torch.get_num_threads()
        self._executor: ThreadPoolExecutor | None = None

    def __enter__(self) -> Pool:
        if self._single:
            torch.set_num_threads(1)
        self._executor = ThreadPoolExecutor(self.workers, "lora-a2-worker", initializer=self._start)
        return self

    def __exit__(self, *error: object) -> None:
        assert self._executor is not None
        self._executor.shutdown(cancel_futures=True)
        self._executor = None
        torch.set_num_threads(self._threads)

    def _start(self) -> None:
        if self._single:
            torch.set_num_threads(1)

    def map(self, work: Callable[[Classifier, Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """`work(classifier, item)` for each item; results in the order of the items, each as soon as it can be had.

        At most two items a worker are under way or waiting to be taken, so that memory does not grow with their number.
        """
        assert self._executor is not None, "the pool is entered first"
        running: deque[Future[Result]] = deque()
        for item in items:
            if len(running) >= 2 * self.workers:
                yield running.popleft().result()
            running.append(self._executor.submit(self._run, work, item))
        while running:
            yield running.popleft().result()

    def _run(self, work: Callable[[Classifier, Item], Result], item: Item) -> Result:
        classifier = self._free.get()
        try:
            return work(classifier, item)
        finally:
            self._free.put(classifier)
