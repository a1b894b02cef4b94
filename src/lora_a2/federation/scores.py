"""What the evaluations of a run's rounds came to: the primary metric, which round was the best, and how long ago."""

from __future__ import annotations

from collections.abc import Sequence

from lora_a2.federation.records import RoundRecord
from lora_a2.tasks.base import PERSONAL
from lora_a2.tasks.registry import measured


def score(record: RoundRecord) -> float | None:
    """The task's primary metric after a round, of the personal models if there are some; None: it was not evaluated."""
    task = measured(record.metrics)
    return None if task is None else float(record.metrics.get(PERSONAL, record.metrics)[task.primary])


def is_best(records: Sequence[RoundRecord]) -> bool:
    """Whether the last of these rounds was evaluated, and is better than all before it."""
    return bool(records) and best_round(records) is records[-1]


def best_round(records: Sequence[RoundRecord]) -> RoundRecord | None:
    """The evaluated round with the best score, the first of those that are equal; None: none was evaluated."""
    evaluated = [(record, value) for record in records if (value := score(record)) is not None]
    if not evaluated:
        return None
    task = measured(evaluated[0][0].metrics)
    assert task is not None, "it was evaluated"
    return min(evaluated, key=lambda pair: task.worse(pair[1]))[0]


def evaluations_since_best(records: Sequence[RoundRecord]) -> int:
    """How many evaluations in a row, up to the last one, were no better than the best before them."""
    best = best_round(records)
    if best is None:
        return 0
    return sum(record.server_round > best.server_round and score(record) is not None for record in records)


def out_of_patience(patience: int | None, records: Sequence[RoundRecord]) -> bool:
    """Whether a run with this patience ends after these rounds; None: it goes on to its last round."""
    return patience is not None and evaluations_since_best(records) >= patience
