"""How far one client may move the state: honest training stays within, at any size, and what is scaled up does not."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from federation import save_data, save_model, tiny_clients, tiny_model
from lora_a2 import codec
from lora_a2.config.run import make_config
from lora_a2.core.types import ClientProfile, ServerState, dense
from lora_a2.engine.adamw import AdamW
from lora_a2.errors import ConfigError
from lora_a2.federation.agreement import Federation
from lora_a2.federation.bounds import FARTHEST_STEP, credible_examples, fair_share, local_steps, usual_norm
from lora_a2.federation.client import upload_schema
from lora_a2.federation.exchange import RoundRules, Train
from lora_a2.federation.loop import Plan
from lora_a2.federation.observer import Observer
from lora_a2.federation.records import RoundRecord
from lora_a2.federation.server import server_round
from lora_a2.methods import METHODS
from lora_a2.model.pretrained import Model
from lora_a2.runs.jobs import launch, resume
from lora_a2.simulation import InProcess, make_plan, make_pool, simulate
from tiny import Stopping

UNEVEN = (30, 1, 20, 6, 14)
RATIO = 10.0


@functools.cache
def shared_model() -> Model:
    """A tiny one, which a run takes as it finds it."""
    return tiny_model(head="trained")


def plan_for(name: str, sizes: Sequence[int], ratio: float | None = RATIO, **options: Any) -> Plan:
    usual = {"num_server_rounds": 3, "batch_size": 8, "local_epochs": 1, "r": 4, "rank_budget": 2, "num_workers": 1}
    if METHODS[name].select is None:
        usual["rank_budget"] = 4
    plan = make_plan(shared_model(), tiny_clients(tuple(sizes)), name, **{**usual, **options})
    return dataclasses.replace(plan, rules=RoundRules(max_update_ratio=ratio, fair_shares=ratio is not None))


def honest(name: str, sizes: Sequence[int], **options: Any) -> tuple[ServerState, list[RoundRecord]]:
    plan = plan_for(name, sizes, **options)
    rounds = list(simulate(shared_model(), tiny_clients(tuple(sizes)), plan))
    return rounds[-1][0], [dataclasses.replace(record, seconds={}) for _, record in rounds]


@pytest.mark.parametrize("name", METHODS)
def test_it_never_fires_on_honest_clients(name: str) -> None:
    """30 examples beside 1, rounds of A and of B, heads, private factors, whole backbones; and nothing changes because of it."""
    rate = 5e-4 if METHODS[name].full else 5e-3
    state, records = honest(name, UNEVEN, learning_rate=rate)
    free, others = honest(name, UNEVEN, learning_rate=rate, ratio=None)
    assert not any(record.refused for record in records)
    assert records == others
    for module, f in state.adapter.factors.items():
        assert f.A.tobytes() == free.adapter.factors[module].A.tobytes()
        assert f.B.tobytes() == free.adapter.factors[module].B.tobytes()
    margins = [
        c.update_norm / usual_norm(records[:t]) for t, r in enumerate(records) for c in r.clients if c.update_norm
    ]
    trained = [t for t in (1, 2, 3) if not METHODS[name].asks_gradients(t)]
    assert len(margins) == len(trained) * len(UNEVEN)
    assert max(margins) < RATIO / 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora-a2", "fl-lora"])
def test_it_never_fires_on_1317_examples_beside_1(name: str) -> None:
    _, records = honest(name, (1317, 1, 900, 9, 1), num_server_rounds=2, batch_size=16)
    assert not any(record.refused for record in records)


@pytest.mark.parametrize(
    "options", [{"learning_rate": 1e-6}, {"learning_rate": 0.3}, {"local_epochs": 9}, {"wire_dtype": "fp16"}]
)
def test_it_never_fires_whatever_the_settings(options: dict[str, Any]) -> None:
    for name in ("lora-a2", "hetlora"):
        _, records = honest(name, (12, 1, 30), num_server_rounds=3, **options)
        assert not any(record.refused for record in records)


# --- what it is there for


def scaled(federation: Federation, data: bytes, by: float, rank: int) -> bytes:
    """An upload times a number."""
    upload = codec.decode_upload(data, upload_schema(federation), rank, federation.initial.scaling * rank)
    update = upload.update.with_tensors(by * upload.update.tensors)
    base = {n: np.float32(by) * dense(c) for n, c in upload.base_update.items()}
    return codec.encode(dataclasses.replace(upload, update=update, base_update=base), upload_schema(federation))


def attacked(name: str, by: float, victim: int, bad_rounds: Sequence[int]) -> list[RoundRecord]:
    """Rounds in which one client's honest upload is multiplied."""
    plan = plan_for(name, UNEVEN, num_server_rounds=3, learning_rate=5e-4 if METHODS[name].full else 5e-3)
    model, clients = shared_model(), tiny_clients(UNEVEN)
    records: list[RoundRecord] = []
    state = plan.start()
    with make_pool(model, plan) as pool:
        driver = InProcess(model, pool, plan, clients, {}, Observer())
        for number in (1, 2, 3):
            train = driver.train(state, plan.profiles)

            def tampering(
                downloads: Iterable[tuple[ClientProfile, bytes]], train: Train = train, number: int = number
            ) -> Iterator[tuple[ClientProfile, Any]]:
                for profile, data in train(downloads):
                    bad = profile.id == victim and number in bad_rounds
                    assert isinstance(data, bytes)
                    yield profile, scaled(plan.federation, data, by, profile.rank) if bad else data

            state, record = server_round(
                plan.federation, state, plan.profiles, tampering, plan.rules.among(plan.profiles), None, records
            )
            records.append(record)
    return records


@pytest.mark.parametrize("by", [pytest.param(1000.0, marks=pytest.mark.slow), -30.0])
@pytest.mark.parametrize("name", METHODS)
def test_it_fires_for_what_is_scaled_up(name: str, by: float) -> None:
    """In the first round, when there is nothing to compare with yet, and in later ones; of A and of B; for the largest client too."""
    for victim in (0, 3):
        records = attacked(name, by, victim, (1, 2))
        bad = [
            t for t in (1, 2) if not METHODS[name].asks_gradients(t)
        ]  # a gradient has no learning rate to be measured by
        expected = [[victim] if t in bad else [] for t in (1, 2, 3)]
        assert [list(r.refused) for r in records] == expected, (victim, [r.refused for r in records])
        assert all("learning rate" in reason for r in records for reason in r.refused.values())


def test_one_that_attacks_all_the_time_does_not_become_usual() -> None:
    records = attacked("lora-a2", -3.0, 2, (1, 2, 3))
    assert usual_norm(records) < 3


@pytest.mark.parametrize("name", ["hetlora", "fl-lora", "lora-a2"])
def test_an_example_in_thousands_does_not_decide_by_its_norm(name: str) -> None:
    """The client with one example may move no farther than its few steps; HetLoRA weighs by norms."""
    records = attacked(name, 100.0, 1, (1, 2, 3))
    assert all(list(record.refused) == [1] for record in records)


# --- its parts


def reach(gradients: np.ndarray, rate: float, decay: float) -> float:
    values = torch.ones(1, gradients.shape[1])
    optimizer = AdamW(values, np.full((1, gradients.shape[1]), rate, np.float32), decay)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lora_a2.engine.adamw._EPSILON", 1e-30)  # which would only shorten steps
        for gradient in gradients:
            optimizer.step(torch.tensor(gradient[None]))
    return float((values - 1).abs().max())


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.floats(0.5, 2), st.floats(-5, 5), st.integers(0, 99))
def test_no_gradients_move_a_value_farther_than_the_bound(steps: int, growth: float, start: float, seed: int) -> None:
    """Growing, shrinking, constant and random ones."""
    rng = np.random.default_rng(seed)
    powers = growth ** np.minimum(np.arange(steps), 60.0)
    gradients = np.stack([10.0**start * powers, powers * rng.standard_normal(steps)], axis=1).astype(np.float32)
    assert reach(gradients, 1e-3, 0.0) <= 1e-3 * FARTHEST_STEP * steps * 1.001
    assert (
        reach(gradients, 1e-3, 0.1) <= 1e-3 * steps * (FARTHEST_STEP + 0.1 * (1 + 1e-3 * FARTHEST_STEP * steps)) * 1.001
    )


def test_the_bound_is_not_far_off() -> None:
    """Gradients that grow as β₂ / β₁ come near it: a step of more than half of it."""
    growing = (0.999 / 0.9) ** np.arange(200.0)
    assert reach(growing[:, None].astype(np.float32), 1e-3, 0) > 0.5 * 1e-3 * FARTHEST_STEP * 100


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 2**31 - 1), min_size=1, max_size=9))
def test_nobody_counts_for_much_more_than_the_next(counts: list[int]) -> None:
    most = fair_share(counts)
    assert (most is None) == (len(counts) < 3)
    if most is not None:
        cut = sorted(min(n, most) for n in counts)
        assert cut[:-1] == sorted(counts)[:-1]
        assert cut[-1] <= 3 * cut[-2]


def test_a_forged_number_counts_for_little() -> None:
    assert fair_share([100, 100, 100, 100, 2**31 - 1]) == 300
    assert fair_share([1317, 900, 5, 1, 1]) == 2700
    assert credible_examples([1317, 1, 1]) == 100


def test_steps_are_those_of_training() -> None:
    plan = plan_for("lora-a2", (9, 8, 1), batch_size=4)
    assert [local_steps(plan.federation, n) for n in (1, 4, 5, 8, 9)] == [1, 1, 2, 2, 3]
    few = plan_for("lora-a2", (9, 8, 1), batch_size=2, gradient_accumulation_steps=2, max_steps_per_round=2)
    assert [local_steps(few.federation, n) for n in (1, 4, 5, 8, 9)] == [1, 1, 2, 2, 2]


# --- runs


def options(tmp_path: Path) -> dict[str, Any]:
    return {
        "data": str(save_data(tmp_path / "tiny.csv", 48)),
        "model": str(save_model(tmp_path / "model")),
        "dtype": "float32",
        "num_clients": 3,
        "num_server_rounds": 4,
        "local_epochs": 1,
        "r": 4,
        "learning_rate": 0.02,
        "max_update_ratio": 1.3,
    }


def without_times(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_a_resumed_run_compares_with_the_same_rounds(tmp_path: Path) -> None:
    """The ratio is so small that it fires: what is usual must survive."""
    given = options(tmp_path)
    launch(make_config(given, {"output_dir": str(tmp_path / "whole")}), Observer())
    whole = without_times(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        launch(make_config(given, {"output_dir": str(tmp_path / "cut")}), Stopping(2))
    resume(tmp_path / "cut", Observer())
    assert without_times(tmp_path / "cut") == whole
    first, second = (max((tmp_path / n / "checkpoint").glob("*.safetensors")) for n in ("whole", "cut"))
    assert first.read_bytes() == second.read_bytes()


def test_how_far_clients_moved_is_read_back() -> None:
    _, records = honest("ffa-lora", (4, 3, 5), num_server_rounds=1)
    found = RoundRecord.from_json(json.loads(json.dumps(records[0].to_json())))
    assert found == records[0]
    assert usual_norm([found]) == usual_norm(records)


def test_noise_and_the_bound_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="max-update-ratio"):
        make_config({}, {"max_update_ratio": 10, "laplace_epsilon": 1.0})
