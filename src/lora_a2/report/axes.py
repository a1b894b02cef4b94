"""What axes say: rounds as whole numbers, bytes with their unit, shares in percent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np

from lora_a2.display.progress import human_bytes
from lora_a2.tasks.base import Task

PERCENT, PLAIN = ".1~%", ".4~g"
"""A share as 71.3%, without a needless zero; a number as 26.92."""
MAX_TICKS = 8
BYTES = "replace(format(datum.value, '~s'), /([a-zA-Z]?)$/, ' $1B')"
"""Vega's expression for a label: 2500000 → '2.5 MB'."""


def number_format(task: Task) -> str:
    """How values of a task's primary metric are written on axes."""
    return PERCENT if task.is_fraction() else PLAIN


def tick_format(number_format: str) -> str:
    """That of an axis' ticks: with the digits that they need, so that no two of a narrow range read the same."""
    return ".3~%" if number_format.endswith("%") else ".6~g"


def whole_ticks(first: int, last: int) -> list[int]:
    """Whole numbers from `first` to `last`, each once and at most `MAX_TICKS` + 1 of them: multiples of 1, 2, 5, 10, 20, …

    `first` is among them.
    """
    span = last - first
    steps = (factor * 10**power for power in range(12) for factor in (1, 2, 5))
    step = next(step for step in steps if span / step <= MAX_TICKS)
    multiples = [tick for tick in range(-(-first // step) * step, last + 1, step) if tick > first]
    crowded = multiples and multiples[0] - first < step / 2
    return [first, *(multiples[1:] if crowded else multiples)]


def byte_ticks(low: float, high: float) -> list[float]:
    """Round numbers between two sizes on a logarithmic axis: 1, 2, 5, 10, …; evenly spaced ones where there are too few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1,)):
        found = [float(factor * 10**power) for power in decades for factor in factors]
        found = [tick for tick in found if low <= tick <= high]
        if len(found) <= MAX_TICKS:
            break
    if len(found) > 2 or low == high:
        return found
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 5)
    return [float(tick) for tick in np.arange(math.ceil(low / step), math.floor(high / step) + 1) * step]


@dataclass(frozen=True)
class Across:
    """A horizontal axis.

    Attributes:
        title: what it shows.
        encoding: of the field x.
        show: a value as text.
    """

    title: str
    encoding: alt.X
    in_bytes: bool

    def show(self, value: float) -> str:
        """A value as text."""
        return human_bytes(value) if self.in_bytes else str(round(value))


def rounds(values: Sequence[float], title: str = "Server round") -> Across:
    """Of server rounds, from the first to the last of `values`."""
    first, last = round(min(values, default=1)), round(max(values, default=1))
    axis = alt.Axis(values=whole_ticks(first, last), format="d", grid=False, labelFlush=False)
    domain = [first, last] if last > first else [first - 1, first + 1]
    return Across(title, alt.X("x:Q", title=title, axis=axis, scale=alt.Scale(domain=domain, nice=False)), False)


def byte_sizes(values: Sequence[float], title: str) -> Across:
    """Of bytes, logarithmic. `values` are above 0."""
    axis: Any = alt.Axis(
        values=byte_ticks(min(values), max(values)), labelExpr=BYTES, labelOverlap=True, labelSeparation=8
    )
    encoding = alt.X("x:Q", title=title, axis=axis, scale=alt.Scale(type="log", nice=False))
    return Across(title, encoding, True)
