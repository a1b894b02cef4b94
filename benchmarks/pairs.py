"""Times two things alternately, so that fluctuations of the machine affect both."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field

Timed = Callable[[], float]
"""Does something and returns its duration in seconds."""


@dataclass(frozen=True)
class Measured:
    """A figure's value in each pair; the seconds behind it, by name, one number for each pair; and other facts."""

    values: list[float]
    seconds: dict[str, list[float]] = field(default_factory=dict)
    facts: dict[str, float] = field(default_factory=dict)


def alternating(names: tuple[str, str], above: Timed, below: Timed, pairs: int) -> Measured:
    """Seconds of `above` ÷ seconds of `below` in each pair; every other pair begins with `below`. Both must be warmed up."""
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
