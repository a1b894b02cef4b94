"""How the learning rate goes from round to round, under Transformers' names.

Within a round it stays, since AdamW starts anew with each. Shapes: R server rounds, W of them for warming up, round r = 1 … R.

    r ≤ W      r / (W + 1), so that no round is spent on a rate of 0
    constant   1
    linear     1 − p, where p = (r − 1 − W) / (R − W)
    cosine     (1 + cos π p) / 2

Linear and cosine would reach 0 in round R + 1. That is `get_scheduler` of Transformers after r steps, with W + 1 steps for warming
up among R + 1; without warming up it is also r − 1 steps among R.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_SHAPES: Mapping[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
}
SCHEDULES = tuple(_SHAPES)
DEFAULT_SCHEDULE = "constant"


@dataclass(frozen=True)
class RateSchedule:
    """The factor of the learning rate in each round of a run.

    Attributes:
        kind: a name of `SCHEDULES`.
        warmup_rounds: W < R.
        num_server_rounds: R.
    """

    kind: str = DEFAULT_SCHEDULE
    warmup_rounds: int = 0
    num_server_rounds: int = 1

    def factor(self, server_round: int) -> float:
        """What the learning rate of this round (from 1 on) is multiplied by: above 0 up to round R, at most 1."""
        if server_round <= self.warmup_rounds:
            return server_round / (self.warmup_rounds + 1)
        left = self.num_server_rounds - self.warmup_rounds
        return _SHAPES[self.kind](min(1.0, (server_round - 1 - self.warmup_rounds) / left))


STEADY = RateSchedule()
"""The full rate in every round."""
