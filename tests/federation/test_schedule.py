"""Learning rates over the rounds: Transformers' own, at both ends of the wire."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import get_scheduler

from federation import tiny_clients, tiny_model
from lora_a2.config.run import make_config
from lora_a2.core.types import ClientProfile
from lora_a2.errors import ConfigError, ReplyError
from lora_a2.federation.client import client_round
from lora_a2.federation.exchange import RoundRules
from lora_a2.federation.schedule import SCHEDULES, STEADY, RateSchedule
from lora_a2.federation.server import server_round
from lora_a2.simulation import make_plan, simulate

MODEL = tiny_model()
CLIENTS = tiny_clients((9, 12, 6))


def transformers_factors(kind: str, warmup: int, steps: int) -> list[float]:
    """Of each step, before it is made."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = get_scheduler(kind, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    found = []
    for _ in range(steps):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SCHEDULES), st.integers(1, 30), st.data())
def test_the_factors_are_those_of_transformers(kind: str, rounds: int, data: st.DataObject) -> None:
    warmup = data.draw(st.integers(0, rounds - 1))
    schedule = RateSchedule(kind, warmup, rounds)
    found = [schedule.factor(number) for number in range(1, rounds + 1)]
    named = "constant_with_warmup" if kind == "constant" else kind
    # One step more at the beginning: Transformers' first one has a rate of 0.
    assert found == pytest.approx(transformers_factors(named, warmup + 1, rounds + 1)[1:], abs=1e-12)
    # Behind warming up that is one step a round.
    assert found[warmup:] == pytest.approx(transformers_factors(named, warmup, rounds)[warmup:], abs=1e-12)
    assert all(0 < factor <= 1 for factor in found)
    assert found[warmup] == 1
    if kind != "constant":
        assert schedule.factor(rounds + 1) == pytest.approx(0, abs=1e-12)


def run(**options: Any) -> list[Any]:
    usual: dict[str, Any] = {"r": 4, "rank_budget": 4, "local_epochs": 1, "batch_size": 4, "learning_rate": 4e-3}
    plan = make_plan(MODEL, CLIENTS, "fl-lora", **{**usual, **options})
    plan = replace(
        plan, rules=RoundRules(max_update_ratio=1e9)
    )  # what AdamW can reach at the round's rate is still looked at
    return [(plan, *each) for each in simulate(MODEL, CLIENTS, plan)]


def test_a_round_is_one_at_the_round_s_rate() -> None:
    """The last of 4 rounds that go down is a first round at a quarter of the rate; here the first of 3 that warm up."""
    warm = run(num_server_rounds=4, warmup_rounds=3)
    plain = run(num_server_rounds=1, learning_rate=1e-3)
    for name, f in plain[0][1].adapter.factors.items():
        np.testing.assert_array_equal(warm[0][1].adapter.factors[name].B, f.B)
    assert not any(record.refused for _, _, record in warm)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_movement_is_measured_in_the_round_s_rate(kind: str) -> None:
    """Values move with the rate, and how far they did by it stays; nobody is refused at either end."""
    rounds = run(num_server_rounds=4, lr_scheduler_type=kind)
    norms = [np.mean([c.update_norm for c in record.clients]) for _, _, record in rounds]
    assert not any(record.refused for _, _, record in rounds)
    assert max(norms) < 2 * min(norms)
    moved = []
    before = rounds[0][0].start().adapter
    for _, state, _ in rounds:
        after = state.adapter
        moved.append(math.sqrt(sum(float(np.sum((f.A - before.factors[n].A) ** 2)) for n, f in after.factors.items())))
        before = after
    falls = moved[3] < 0.5 * moved[1]
    assert falls == (kind != "constant")


def test_the_server_refuses_what_the_round_s_rate_cannot_reach() -> None:
    """Clients that train at the full rate in a round at a hundredth of it."""
    plan = make_plan(MODEL, CLIENTS, "fl-lora", num_server_rounds=100, warmup_rounds=99, r=4, rank_budget=4)
    full = plan.federation.training.learning_rate
    assert plan.federation.training_in(100).learning_rate == full
    assert plan.federation.training_in(1).learning_rate == pytest.approx(full / 100)
    hasty = replace(plan.federation, schedule=STEADY)

    def train(downloads: Iterable[tuple[ClientProfile, bytes]]) -> Iterator[tuple[ClientProfile, bytes]]:
        for profile, data in downloads:
            ((upload, _),) = client_round(hasty, MODEL.network, [(profile, CLIENTS[profile.id].train)], [data])
            yield profile, upload

    with pytest.raises(ReplyError, match=r"3 were refused, the first because: .* at the learning rate 5e-06"):
        server_round(plan.federation, plan.start(), plan.profiles, train, RoundRules(max_update_ratio=1e9))
    server_round(hasty, plan.start(), plan.profiles, train, RoundRules(max_update_ratio=1e9))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"warmup_rounds": 3, "num_server_rounds": 3}, "warmup-rounds: 3 of 3 server rounds leave none"),
        ({"warmup_rounds": -1}, "warmup-rounds"),
        ({"lr_scheduler_type": "polynomial"}, "lr-scheduler-type: 'polynomial' is not one of constant, linear, cosine"),
    ],
)
def test_others_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_config({}, options)
