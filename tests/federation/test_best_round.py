"""Which round was the best, and when patience is at its end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lora_a2.federation.records import RoundRecord
from lora_a2.federation.scores import best_round, evaluations_since_best, is_best, out_of_patience, score
from lora_a2.tasks.registry import TASKS


def records(values: list[float | None], task: str, personal: bool = False) -> list[RoundRecord]:
    """Rounds with these scores; None: not evaluated."""
    name = TASKS[task].primary

    def metrics(value: float | None) -> dict[str, object]:
        if value is None:
            return {}
        return {name: 0.5, "personal": {name: value}} if personal else {name: value}

    return [RoundRecord(n, ["A"], [], 0, 0, 0, 0, 1.0, metrics=metrics(v)) for n, v in enumerate(values, start=1)]


SCORES = st.lists(st.none() | st.sampled_from([1.0, 2.0, 3.0, 4.0]), max_size=12)


@given(values=SCORES, task=st.sampled_from(list(TASKS)), personal=st.booleans(), patience=st.integers(1, 4))
def test_scores(values: list[float | None], task: str, personal: bool, patience: int) -> None:
    rounds, better = records(values, task, personal), max if TASKS[task].higher_is_better else min
    known = [value for value in values if value is not None]
    assert [score(record) for record in rounds] == values
    best = best_round(rounds)
    if not known:
        assert best is None and evaluations_since_best(rounds) == 0
        return
    assert best is not None and score(best) == better(known)
    assert best.server_round == values.index(better(known)) + 1
    assert evaluations_since_best(rounds) == len(known) - 1 - known.index(better(known))
    assert is_best(rounds) == (best is rounds[-1])
    # Counted as it happens: a counter that a better score sets back.
    waited, reached = 0, None
    for value in known:
        waited = 0 if reached is None or better(value, reached) != reached else waited + 1
        reached = value if reached is None else better(value, reached)
    assert out_of_patience(patience, rounds) == (waited >= patience)
    assert not out_of_patience(None, rounds)
