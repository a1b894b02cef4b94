"""Work in this process, or side by side in others: the results are the same, in order, and errors and interrupts come through."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from lora_a2.engine import pool
from lora_a2.engine.network import Network
from lora_a2.engine.pool import Pool, ProcessPool, peak_memory
from lora_a2.errors import ReplyError, RunError
from tiny import backbone, classifier

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")
KINDS: list[Callable[[Network], Pool]] = [Pool, lambda model: ProcessPool(model, 2)]


@pytest.fixture(scope="module")
def model() -> Network:
    """A tiny one."""
    return classifier(backbone("bert"), "bert")[0]


@pytest.mark.parametrize("kind", KINDS, ids=["here", "forked"])
def test_results_come_in_the_order_of_the_items(kind: Callable[[Network], Pool], model: Network) -> None:
    offset = np.arange(3)  # not sent: workers find what the work refers to
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(9):
            taken.append(number)
            yield number

    with kind(model) as workers:
        found = workers.map(lambda own, number: (offset + number, torch.get_num_threads(), len(own.layers)), items())
        first = next(found)
        assert len(taken) <= 5  # no more are taken than two a worker, and the next
        results = [first, *found]
    assert [values.tolist() for values, _, _ in results] == [[n, n + 1, n + 2] for n in range(9)]
    assert {(threads, layers) for _, threads, layers in results} == {(1, len(model.layers))}


@pytest.mark.parametrize("kind", KINDS, ids=["here", "forked"])
def test_an_error_in_the_work_is_raised(kind: Callable[[Network], Pool], model: Network) -> None:
    def work(own: Network, number: int) -> int:
        if number == 1:
            raise ReplyError("number one is wrong")
        return number

    before = torch.get_num_threads()
    with kind(model) as workers, pytest.raises(ReplyError, match="number one is wrong"):
        list(workers.map(work, range(3)))
    assert torch.get_num_threads() == before


def test_what_work_changes_in_a_process_stays_there(model: Network) -> None:
    seen: list[int] = []
    with ProcessPool(model, 2) as workers:
        assert list(workers.map(lambda own, number: seen.append(number), range(3))) == [None] * 3
    assert seen == []


def test_a_killed_worker_is_an_error(model: Network) -> None:
    with ProcessPool(model, 2) as workers, pytest.raises(RunError, match="was killed, perhaps"):
        list(workers.map(lambda own, number: os.kill(os.getpid(), signal.SIGKILL), range(2)))


def test_workers_end_with_their_parent() -> None:
    script = """
import os, signal, sys, time
sys.path.insert(0, {tests!r})
from tiny import backbone, classifier
from lora_a2.engine.pool import ProcessPool
parent = os.getpid()
def work(own, number):
    print(os.getpid(), flush=True)
    if number == 1:
        os.kill(parent, signal.SIGKILL)
    signal.pause()
with ProcessPool(classifier(backbone("bert"), "bert")[0], 2) as workers:
    list(workers.map(work, range(2)))
"""
    code = script.format(tests=os.path.dirname(os.path.dirname(__file__)))
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    # The pipe of standard output is at its end only when the workers have gone too: else the timeout would have struck.
    assert ended.stdout


def test_the_memory_of_workers_counts(model: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool._Workers, "peak", 0)
    before = peak_memory()
    with ProcessPool(model, 2) as workers:
        list(workers.map(lambda own, number: int(np.ones(2**24, np.uint8).sum()) + number, range(2)))
    assert peak_memory() >= before + 2**24
