"""The method record: schedules, and transforms at both ends."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from test_conformance import Cohort, effective, federation, population, run

from lora_a2.core.transforms import Sending, Transform
from lora_a2.core.types import Adapter, ServerState
from lora_a2.federation.server import server_round
from lora_a2.methods import METHODS
from lora_a2.methods.base import Schedule, alternate, always


def test_a_schedule_repeats_its_period_after_its_opening() -> None:
    schedule = Schedule((frozenset("B"), frozenset("A"), frozenset("AB")), (frozenset(),))  # type: ignore[arg-type]
    assert ["".join(sorted(schedule(t))) for t in range(1, 9)] == ["", "B", "A", "AB", "B", "A", "AB", "B"]
    assert schedule.ever == {"A", "B"}
    assert always("A", "B")(7) == {"A", "B"} and alternate("B", "A")(4) == {"A"}


@pytest.mark.parametrize("period", [(), (frozenset({"C"}),)])
def test_a_schedule_is_checked_when_it_is_made(period: tuple[frozenset[str], ...]) -> None:
    with pytest.raises(ValueError, match="A schedule needs a period"):
        Schedule(period)  # type: ignore[arg-type]


def test_a_factor_of_the_third_round_is_neither_frozen_nor_lost() -> None:
    """A schedule of period 3 used to freeze what the first two rounds do not train."""
    method = replace(METHODS["rolora"], schedule=alternate("B", "B", "A"), name="three")
    assert method.travels == {"A", "B"} and not method.frozen
    states, records, _, cohort = run(method, [5, 9, 2, 7], [[0, 1, 2, 3]] * 4)
    moved = [
        not np.array_equal(s.adapter.factors["wide"].A, t.adapter.factors["wide"].A)
        for s, t in itertools.pairwise(states)
    ]
    assert moved == [False, False, True, False]
    assert [r.trainable for r in records] == [["B"], ["B"], ["A"], ["B"]]
    held = cohort.kept[0].adapter
    assert held is not None and np.array_equal(held.factors["wide"].A, states[3].adapter.factors["wide"].A)


def shift(by: float) -> Transform:
    def moved(amount: float):  # type: ignore[no-untyped-def]
        return lambda update, sending: update.with_tensors(
            {k: v + np.float32(amount) for k, v in update.tensors.items() if k[0] in sending.shared}
        )

    return Transform("shift", moved(by), moved(-by))


def double(update: Adapter, sending: Sending) -> Adapter:
    return update.with_tensors(2.0 * update.tensors)


def halve(update: Adapter, sending: Sending) -> Adapter:
    return update.with_tensors(0.5 * update.tensors)


def test_the_server_undoes_transforms_in_reverse_order() -> None:
    """(u + 1) · 2 on the client, so that any other order on the server would give another sum."""
    method = METHODS["fl-lora"]
    profiles = population(method, [5, 9, 2, 7])
    found = []
    for transforms in ((), (shift(1.0), Transform("double", double, halve))):
        made = replace(federation(method), transforms=transforms, method=replace(method, transforms=transforms))
        state, _ = server_round(made, ServerState(0, made.initial, 0), profiles, Cohort(made, 0))
        found.append(effective(state))
    for name, values in found[0].items():
        np.testing.assert_allclose(found[1][name], values, atol=1e-5)
