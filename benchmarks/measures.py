"""How each figure is measured. Every function returns the figure's value in each pair."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

import lora_a2
from gemm import floor_seconds, rate
from ours import bare_round, rounds
from pairs import Measured, alternating
from peers.process import BENCHMARKS, PeerError, PeerProcess, started
from setups import Setup, Size, minilm, roberta
from workload import BATCH, plan_of

FEW, MANY = 10, 1000
"""Clients of the two processes whose peak memory is compared."""


class NotMeasured(Exception):
    """A figure cannot be measured here; the text says why."""


@dataclass
class Bench:
    """The options of a benchmark run, and the set-ups that its figures share."""

    data_folder: Path
    tokenizer: Path
    clients: int
    roberta_clients: int
    examples: int | None
    pairs: int
    device: str
    clients_per_pass: int

    @cached_property
    def data(self) -> object:
        """BANKING77."""
        return lora_a2.load_data(str(self.data_folder))

    @cached_property
    def minilm(self) -> Setup:
        """On the CPU, whatever the device."""
        return minilm(self.data, Size(self.clients, self.examples, "cpu"))

    @cached_property
    def roberta(self) -> Setup:
        """On the CPU."""
        return roberta(self.data, self.tokenizer, self._folder, Size(self.roberta_clients, self.examples, "cpu"))

    @cached_property
    def roberta_on_device(self) -> Setup:
        """On the accelerator."""
        if not self.device.startswith("cuda"):
            raise NotMeasured("needs --device cuda")
        size = Size(self.clients, self.examples, self.device, self.clients_per_pass)
        return roberta(self.data, self.tokenizer, self._folder, size)

    @cached_property
    def _folder(self) -> Path:
        if not self.tokenizer.is_dir():
            raise NotMeasured(f"no tokenizer of RoBERTa-base at {self.tokenizer}: give its folder with --tokenizer")
        self._temporary = tempfile.TemporaryDirectory(prefix="lora-a2-roberta-")
        return Path(self._temporary.name)


def beside(setup: Setup, peer: str, dtype: str, pairs: int) -> Measured:
    """Seconds of the peer's round ÷ ours, on the same tokens, after the equality gate in float32."""
    if dtype == "float32" or peer not in setup.gates:
        with started(peer, setup.place) as process:
            process.round()
            setup.check(peer, process.result())
            print(f"  gate: ours and {peer} differ by {setup.gates[peer]:.1e} at most", file=sys.stderr)
            if dtype == "float32":
                return _timed_beside(setup, process, pairs)
    with started(peer, setup.place, dtype) as process:
        process.round()
        return _timed_beside(setup, process, pairs)


def _timed_beside(setup: Setup, process: PeerProcess, pairs: int) -> Measured:
    def ours() -> float:
        return rounds(setup.model, setup.clients, setup.plan)

    ours()
    found = alternating((process.name, "ours"), process.round, ours, pairs)
    rate = setup.tokens / statistics.median(found.seconds["ours"])
    print(f"  ours: {rate:.0f} tokens a second", file=sys.stderr)
    return replace(found, facts={"gate": setup.gates[process.name], "tokens": setup.tokens, "tokens a second": rate})


def utilisation(bench: Bench) -> Measured:
    """Time of 4·P·T operations at the bfloat16 rate measured next to it ÷ the bare training's time."""
    setup = bench.minilm
    shapes = [(m.d_out, m.d_in) for m in setup.model.layout.modules]
    rows = round(BATCH * setup.tokens / sum(len(c.train) for c in setup.clients))

    def floor() -> float:
        return floor_seconds(shapes, setup.tokens, rate(shapes, rows, torch.device("cpu")))

    def step() -> float:
        return bare_round(setup.model, setup.clients, setup.plan)

    step()
    return alternating(("floor", "step"), floor, step, bench.pairs)


def method_ratio(bench: Bench) -> Measured:
    """A round that trains B and one that trains A, LoRA-A² (budget 2 of 16 ranks) ÷ FL+LoRA (rank 8), with 5 local epochs."""
    setup = bench.minilm
    selecting = plan_of(setup.model, setup.clients, "lora-a2", epochs=5, budget=2)
    plain = plan_of(setup.model, setup.clients, "fl-lora", epochs=5)
    return alternating(
        ("lora-a2", "fl-lora"),
        lambda: rounds(setup.model, setup.clients, selecting, count=2),
        lambda: rounds(setup.model, setup.clients, plain, count=2),
        bench.pairs,
    )


def overhead(bench: Bench) -> Measured:
    """A round ÷ the same training without messages, − 1."""
    setup = bench.minilm
    bare_round(setup.model, setup.clients, setup.plan)
    found = alternating(
        ("round", "bare"),
        lambda: rounds(setup.model, setup.clients, setup.plan),
        lambda: bare_round(setup.model, setup.clients, setup.plan),
        bench.pairs,
    )
    return replace(found, values=[value - 1 for value in found.values])


def memory(bench: Bench) -> Measured:
    """Peak memory of a round in its own process, with 1,000 small clients ÷ with 10."""
    peaks: dict[int, list[float]] = {FEW: [], MANY: []}
    for _ in range(min(bench.pairs, 3)):
        for count, found in peaks.items():
            command = [sys.executable, str(BENCHMARKS / "memory.py"), "--data", str(bench.data_folder)]
            done = subprocess.run([*command, "--clients", str(count)], capture_output=True, text=True)
            if done.returncode:
                raise PeerError(f"memory.py --clients {count} ended with {done.returncode}: {done.stderr[-500:]}")
            found.append(float(done.stdout.split()[-1]))
        print(f"  {FEW} clients {peaks[FEW][-1]:.0f} MiB, {MANY} clients {peaks[MANY][-1]:.0f} MiB", file=sys.stderr)
    ratios = [many / few for many, few in zip(peaks[MANY], peaks[FEW], strict=True)]
    return Measured(ratios, {f"MiB, {count} clients": found for count, found in peaks.items()})


MEASURES: dict[str, Callable[[Bench], Measured]] = {
    "S_cpu": lambda b: beside(b.minilm, "peft_loop", "float32", b.pairs),
    "S_cpu_bf16": lambda b: beside(b.minilm, "peft_loop", "bfloat16", b.pairs),
    "S_p1": lambda b: beside(b.minilm, "pfl_research", "float32", b.pairs),
    "S_p2": lambda b: beside(b.minilm, "flower_simulation", "float32", b.pairs),
    "U_cpu": utilisation,
    "R": method_ratio,
    "overhead": overhead,
    "S_gpu": lambda b: beside(b.roberta_on_device, "peft_loop", "bfloat16", b.pairs),
    "memory": memory,
    "S_roberta": lambda b: beside(b.roberta, "peft_loop", "float32", b.pairs),
    "S_p1_bf16": lambda b: beside(b.minilm, "pfl_research", "bfloat16", b.pairs),
    "S_p2_bf16": lambda b: beside(b.minilm, "flower_simulation", "bfloat16", b.pairs),
}
