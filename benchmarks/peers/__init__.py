"""The stacks that ours is measured beside. Each trains in a process of its own, which is told when to do a round.

| name | what | where |
| --- | --- | --- |
| `peft_loop` | P0: Transformers + PEFT, one resident model, client after client | our environment |
| `pfl_research` | P1: pfl-research's simulator with PEFT | the peers' environment |
| `flower_simulation` | P2: Flower's simulation on Ray, model and data cached in the actors | the peers' environment |

Each module has `serve(job, answer)`: it loads what stays loaded, makes a `Peer` and hands it to `answer`, which comes back
when no more rounds are wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Job:
    """The folder of a workload, and whether the forward pass runs under bfloat16 autocast."""

    folder: Path
    bfloat16: bool


@dataclass(frozen=True)
class Peer:
    """`round` trains every client once from the common start; `result` is what came of the last round.

    The result holds the arrays of the aggregated adapter by name, or those of each client k under "k/…".
    """

    round: Callable[[], None]
    result: Callable[[], Mapping[str, np.ndarray]]


Answer = Callable[[Peer], None]
