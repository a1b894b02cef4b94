"""The figures: their names and goals, how they are printed, and their floors. Pure functions."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """`goal` None: no goal. `at_least`: larger is better."""

    name: str
    what: str
    goal: float | None
    at_least: bool = True

    @property
    def goal_text(self) -> str:
        """For example "goal ≥ 10"."""
        return "no goal" if self.goal is None else f"goal {'≥' if self.at_least else '≤'} {self.goal:g}"


FIGURES = {
    figure.name: figure
    for figure in (
        Figure("S_cpu", "tokens a second, ours ÷ Transformers + PEFT loop in float32, MiniLM-L6", 10),
        Figure("S_cpu_bf16", "the same beside the loop under bfloat16 autocast", 5),
        Figure("S_p1", "seconds a round, pfl-research's simulator with PEFT ÷ ours", 8),
        Figure("S_p2", "seconds a round, Flower's simulation ÷ ours", 8),
        Figure("U_cpu", "time of 4·P·T operations at the measured bfloat16 rate ÷ time of our step", 0.6),
        Figure("R", "LoRA-A² round ÷ FL+LoRA round, both ours, probe as in the paper, 5 local epochs", 1.0, False),
        Figure("overhead", "round ÷ the same steps without messages, − 1", 0.03, False),
        Figure("S_gpu", "tokens a second, ours ÷ the loop in bfloat16, RoBERTa-base shape, on a GPU", 30),
        Figure("memory", "peak memory of a round of 1,000 clients ÷ of 10 clients", 1.1, False),
        Figure("S_lm", "tokens a second, ours ÷ Transformers + PEFT loop in float32, SmolLM2-135M on E2E", 4),
        Figure("S_lm_bf16", "the same beside the loop under bfloat16 autocast", 2.5),
        Figure(
            "U_lm", "time of the products of blocks and head at the bfloat16 rate ÷ time of a step, SmolLM2-135M", 0.6
        ),
        Figure("memory_lm", "peak memory of a round in float32, ours ÷ the loop's, SmolLM2-135M", 0.5, False),
        Figure("generate", "seconds of 100 tokens, ours ÷ plain generate(), SmolLM2-135M", 1.05, False),
        Figure("S_roberta", "as S_cpu, RoBERTa-base shape with random weights", None),
        Figure("S_p1_bf16", "as S_p1, pfl-research with amp_dtype bfloat16", None),
        Figure("S_p2_bf16", "as S_p2, clients under bfloat16 autocast", None),
    )
}
"""In printing order."""

LEAST_SLACK = 0.02
SLACK = 0.05


def median_text(values: Sequence[float]) -> str:
    """The median with three digits."""
    return f"{statistics.median(values):.3g}"


def range_text(values: Sequence[float]) -> str:
    """For example "7.8 … 8.6"."""
    return f"{min(values):.3g} … {max(values):.3g}"


def line(figure: Figure, values: Sequence[float]) -> str:
    """The line of a measured figure: `S_cpu 8.3 (goal ≥ 10) [7.8 … 8.6]`."""
    return f"{figure.name} {median_text(values)} ({figure.goal_text}) [{range_text(values)}]"


def missing_line(figure: Figure, reason: str) -> str:
    """The line of a figure that was not measured."""
    return f"{figure.name} not measured ({figure.goal_text}): {reason}"


def reached(figure: Figure, values: Sequence[float]) -> bool:
    """Whether the median meets the goal; true if there is none."""
    if figure.goal is None:
        return True
    median = statistics.median(values)
    return median >= figure.goal if figure.at_least else median <= figure.goal


def floor(figure: Figure, values: Sequence[float]) -> float:
    """The floor that an accepted run sets: the worst of its pairs, but at least 5 % or 0.02 away from the median."""
    median = statistics.median(values)
    slack = max(SLACK * abs(median), LEAST_SLACK)
    return min(min(values), median - slack) if figure.at_least else max(max(values), median + slack)


def fallen(figure: Figure, values: Sequence[float], floor: float) -> bool:
    """Whether the median is on the wrong side of the floor."""
    median = statistics.median(values)
    return median < floor if figure.at_least else median > floor


@dataclass(frozen=True)
class Floors:
    """Figure → floor, and the processor on which each was measured; both empty before the first accepted run."""

    floors: Mapping[str, float]
    processors: Mapping[str, str]

    @classmethod
    def read(cls, path: Path) -> Floors:
        """The floors in a file that `write` wrote; none if there is no such file."""
        if not path.is_file():
            return cls({}, {})
        rows = json.loads(path.read_text())
        return cls({n: r["floor"] for n, r in rows.items()}, {n: r["processor"] for n, r in rows.items()})

    def accepted(self, measured: Mapping[str, Sequence[float]], processor: str) -> Floors:
        """These floors, with those of the measured figures replaced, higher or lower."""
        new = {name: floor(FIGURES[name], values) for name, values in measured.items()}
        return Floors({**self.floors, **new}, {**self.processors, **dict.fromkeys(new, processor)})

    def write(self, path: Path) -> None:
        """Writes one row for each figure, in printing order."""
        rows = {
            name: {"floor": self.floors[name], "processor": self.processors[name]}
            for name in FIGURES
            if name in self.floors
        }
        path.write_text(json.dumps(rows, indent=2) + "\n")

    def complaints(self, measured: Mapping[str, Sequence[float]]) -> list[str]:
        """A line for each figure that fell below its floor."""
        return [
            f"{name} {median_text(values)} is {'below' if FIGURES[name].at_least else 'above'} the floor of "
            f"{self.floors[name]:.3g} from the last accepted run, on {self.processors[name]}."
            for name, values in measured.items()
            if name in self.floors and fallen(FIGURES[name], values, self.floors[name])
        ]
