"""The rate of the base products, which gives a lower bound for a LoRA step's time."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

SECONDS = 1.0
"""How long each way of using the cores is measured."""


def rate(shapes: Sequence[tuple[int, int]], rows: int, device: torch.device) -> float:
    """Operations per second of bfloat16 products (rows, d_in) × (d_in, d_out), over all `shapes` (d_out, d_in) in turn.

    On a CPU, the better of two ways to use all cores: every product on all of them, or a stream of products on each.
    """
    operands = [
        (
            torch.randn(rows, d_in, device=device).to(torch.bfloat16),
            torch.randn(d_out, d_in, device=device).to(torch.bfloat16),
        )
        for d_out, d_in in shapes
    ]
    operations = sum(2 * rows * d_out * d_in for d_out, d_in in shapes)
    if device.type != "cpu":
        return operations / _sweep(operands, device)
    return operations * max(1 / _sweep(operands, device), _side_by_side(operands))


def floor_seconds(shapes: Sequence[tuple[int, int]], tokens: int, rate: float) -> float:
    """4·P·T ÷ rate: a LoRA step multiplies P frozen weights by T tokens forward and by their gradients backward."""
    return 4 * sum(d_out * d_in for d_out, d_in in shapes) * tokens / rate


def _sweep(operands: Sequence[tuple[Tensor, Tensor]], device: torch.device) -> float:
    """Seconds of one turn through all products, the mean over `SECONDS`."""
    turns = 0
    for x, w in operands:
        torch.nn.functional.linear(x, w)
    began = time.perf_counter()
    while (spent := time.perf_counter() - began) < SECONDS or not turns:
        for x, w in operands:
            torch.nn.functional.linear(x, w)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        turns += 1
    return spent / turns


def _side_by_side(operands: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Turns per second of all cores together, one thread each."""
    cores, threads = len(os.sched_getaffinity(0)), torch.get_num_threads()

    def work() -> float:
        torch.set_num_threads(1)
        return 1 / _sweep(operands, torch.device("cpu"))

    try:
        torch.set_num_threads(1)
        with ThreadPoolExecutor(cores) as pool:
            return sum(task.result() for task in [pool.submit(work) for _ in range(cores)])
    finally:
        torch.set_num_threads(threads)
