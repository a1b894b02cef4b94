"""Waits of a SuperNode: short during a round, long if nothing happens, never longer than Flower's own."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_a2.flower.patience import SHARE, SHORTEST, Patience


@given(st.lists(st.sampled_from([0.05, 0.5, 3.0, None]), max_size=300))
def test_a_wait_is_a_share_of_what_has_been_waited_for_the_same(asked: list[float | None]) -> None:
    slept: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", slept.append)
        patience, last, since = Patience(), None, 0.0
        for seconds in asked:
            if seconds is None:
                patience.event()
                since = 0.0
                continue
            since = since if seconds == last else 0.0
            patience.sleep(seconds)
            assert slept[-1] == pytest.approx(min(seconds, max(SHORTEST, SHARE * since)))
            last, since = seconds, since + slept[-1]


def test_an_idle_hour_is_few_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    patience = Patience()
    while sum(slept) < 3600:
        patience.sleep(3.0)
    assert slept[0] == SHORTEST
    assert slept[-1] == 3.0
    assert len(slept) < 1.05 * 3600 / 3


def test_it_is_the_module_time_otherwise() -> None:
    assert Patience().monotonic is time.monotonic
