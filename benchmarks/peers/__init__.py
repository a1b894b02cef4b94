"""The stacks that lora-a2 is compared with. Each trains in its own process, which runs a round on request.

| name | what | where |
| --- | --- | --- |
| `peft_loop` | P0: Transformers + PEFT, one resident model, one client at a time | our environment |
| `pfl_research` | P1: pfl-research's simulator with PEFT | the peers' environment |
| `flower_simulation` | P2: Flower's simulation on Ray, model and data cached in the actors | the peers' environment |

Each module has `serve(job, answer)`: it loads model and data, creates a `Peer` and passes it to `answer`, which returns when
no more rounds are wanted.
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
    """`round` trains every client once from the common start; `result` returns the last round's result.

    The result has the arrays of the aggregated adapter by name, or those of each client k under "k/…".
    """

    round: Callable[[], None]
    result: Callable[[], Mapping[str, np.ndarray]]


Answer = Callable[[Peer], None]
