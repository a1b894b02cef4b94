"""Two things timed in turn, so that a machine's moods meet both."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field

Timed = Callable[[], float]
"""Does something and gives the seconds that it took."""


@dataclass(frozen=True)
class Measured:
    """A figure's value in each pair; what is behind them, by what was timed, one number a pair; and single facts."""

    values: list[float]
    seconds: dict[str, list[float]] = field(default_factory=dict)
    facts: dict[str, float] = field(default_factory=dict)


def alternating(names: tuple[str, str], above: Timed, below: Timed, pairs: int) -> Measured:
    """Seconds of `above` over seconds of `below` in each pair; every other pair begins with `below`. Both are warm already."""
    first, second = names
    seconds: dict[str, list[float]] = {first: [], second: []}
    for pair in range(pairs):
        turns = [(first, above), (second, below)]
        for name, timed in reversed(turns) if pair % 2 else turns:
            seconds[name].append(timed())
        print(
            f"  pair {pair + 1}: {first} {seconds[first][-1]:.2f} s, {second} {seconds[second][-1]:.2f} s",
            file=sys.stderr,
        )
    return Measured([a / b for a, b in zip(seconds[first], seconds[second], strict=True)], seconds)
