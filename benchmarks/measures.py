"""How each figure is measured. Every function returns the figure's value in each pair."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import lora_a2
from gemm import floor_seconds, rate
from lora_a2.errors import LoraA2Error
from lora_a2.model.packages import packaged_folder
from ours import bare_round, rounds
from pairs import Measured, alternating
from peers.process import BENCHMARKS, PeerError, PeerProcess, started
from setups import GateError, Setup, Size, minilm, roberta
from workload import BATCH, plan_of

FEW, MANY = 10, 1000
"""Clients of the two processes whose peak memory is compared."""


WRITER = "SmolLM2-135M-Instruct"
LOSS_GATE = 0.05
"""The largest relative difference of the losses of a round, in float32, between ours and the loop, whose batches and A differ."""


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
    e2e: Path

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
    def writer(self) -> Writing:
        """SmolLM2 on E2E."""
        try:
            folder = packaged_folder(WRITER)
        except LoraA2Error as error:
            raise NotMeasured(str(error)) from error
        if folder is None or not self.e2e.is_dir():
            raise NotMeasured(f"needs {WRITER} out of its package, and E2E at {self.e2e}: give its folder with --e2e")
        return Writing(str(folder), str(self.e2e))

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


@dataclass(frozen=True)
class Writing:
    """A model that writes, and E2E's folder: what `writing.py` measures."""

    model: str
    data: str

    def measure(self, *argv: str) -> dict[str, Any]:
        """One measurement, in a process of its own."""
        command = [sys.executable, str(BENCHMARKS / "writing.py"), *argv, "--model", self.model, "--data", self.data]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise PeerError(f"writing.py {' '.join(argv)} ended with {done.returncode}: {done.stderr[-500:]}")
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    def timed(self, *argv: str) -> Callable[[], float]:
        """Its seconds, each time anew."""
        return lambda: float(self.measure(*argv)["seconds"])

    def speed(self, dtype: str, pairs: int) -> Measured:
        """Seconds of the loop ÷ ours, in the number type that pays here; they come to the same loss."""
        mine, other = self.measure("ours", "float32"), self.measure("peer", "float32")
        if abs(mine["loss"] - other["loss"]) > LOSS_GATE * other["loss"]:
            raise GateError(
                f"ours has a loss of {mine['loss']:.4f} after a round, the loop {other['loss']:.4f}: nothing is timed."
            )
        found = alternating(("loop", "ours"), self.timed("peer", dtype), self.timed("ours", "auto"), pairs)
        per_second = mine["tokens"] / statistics.median(found.seconds["ours"])
        return replace(found, facts={"tokens": mine["tokens"], "tokens a second": per_second})

    def share(self, pairs: int) -> Measured:
        """Time of the products of blocks and head at the bfloat16 rate measured next to it ÷ the training's."""
        seconds: dict[str, list[float]] = {"floor": [], "training": []}
        for _ in range(pairs):
            own = self.measure("ours", "bfloat16")
            parts = [(own["shapes"], own["tokens"]), (own["head"], own["learnt"])]
            rows = [8 * count // own["examples"] for _, count in parts]
            floors = [
                floor_seconds(shapes, count, rate(shapes, n, torch.device("cpu")))
                for (shapes, count), n in zip(parts, rows, strict=True)
            ]
            seconds["floor"].append(sum(floors))
            seconds["training"].append(own["seconds"])
        values = [a / b for a, b in zip(seconds["floor"], seconds["training"], strict=True)]
        return Measured(values, seconds)

    def memory(self, pairs: int) -> Measured:
        """Peak memory of a round, one worker ÷ the loop's."""
        found: dict[str, list[float]] = {"ours": [], "loop": []}
        for _ in range(pairs):
            found["ours"].append(self.measure("ours", "float32", "--workers", "1")["memory"])
            found["loop"].append(self.measure("peer", "float32")["memory"])
        values = [a / b for a, b in zip(found["ours"], found["loop"], strict=True)]
        return Measured(values, {f"MiB, {name}": [v / 2**20 for v in sizes] for name, sizes in found.items()})

    def generation(self, pairs: int) -> Measured:
        """Seconds of 100 tokens, ours ÷ plain `generate()`."""
        return alternating(("ours", "plain"), self.timed("generate", "ours"), self.timed("generate", "plain"), pairs)


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
    "S_lm": lambda b: b.writer.speed("float32", b.pairs),
    "S_lm_bf16": lambda b: b.writer.speed("bfloat16", b.pairs),
    "U_lm": lambda b: b.writer.share(b.pairs),
    "memory_lm": lambda b: b.writer.memory(b.pairs),
    "generate": lambda b: b.writer.generation(b.pairs),
    "S_roberta": lambda b: beside(b.roberta, "peft_loop", "float32", b.pairs),
    "S_p1_bf16": lambda b: beside(b.minilm, "pfl_research", "bfloat16", b.pairs),
    "S_p2_bf16": lambda b: beside(b.minilm, "flower_simulation", "bfloat16", b.pairs),
}
