"""bfloat16 beside float32: which is chosen, that training and evaluation go the same way, and that accuracy does not suffer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_engine import SETTINGS, _task

import lora_a2
from lora_a2.engine import precision
from lora_a2.engine.local import train_cohort
from lora_a2.engine.packing import PackedBatch
from lora_a2.engine.precision import dtype_name, pick_dtype
from lora_a2.errors import ModelError
from lora_a2.federation.population import make_clients
from lora_a2.simulation import make_plan, simulate
from tiny import backbone, classifier, random_adapter

CPU = torch.device("cpu")


@pytest.mark.parametrize(("pays", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_is_bfloat16_only_where_it_pays(
    pays: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "_bfloat16_pays", lambda device: pays)
    assert pick_dtype("auto", CPU) is expected
    assert pick_dtype("float32", CPU) is torch.float32
    assert pick_dtype("bfloat16", CPU) is torch.bfloat16
    with pytest.raises(ModelError, match="choose one of auto, float32, bfloat16"):
        pick_dtype("float16", CPU)


@pytest.mark.parametrize(("slower", "expected"), [(1.0, False), (1.4, False), (1.6, True), (0.1, False)])
def test_bfloat16_pays_at_one_and_a_half_times_the_rate(
    slower: float, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`slower`: seconds of a float32 product over those of a bfloat16 product, on a clock that the products move."""
    now = [0.0]

    def product(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        now[0] += slower if x.dtype is torch.float32 else 1.0
        return x

    monkeypatch.setattr(torch.nn.functional, "linear", product)
    monkeypatch.setattr(precision.time, "perf_counter", lambda: now[0])
    assert precision._bfloat16_pays.__wrapped__(CPU) is expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
def test_training_and_evaluation_go_the_same_way(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both through packed batches, at the same dtype: a batch of the same sentences gets the same logits bit for bit."""
    engine, layout = classifier(backbone("bert"), "bert", dtype=dtype)
    task = _task(random_adapter(layout, 3), 9, 0, None)
    seen: list[tuple[type, torch.dtype]] = []
    hidden = engine._hidden

    def noting(batch: object) -> torch.Tensor:
        states = hidden(batch)  # type: ignore[arg-type]
        seen.append((type(batch), states.dtype))
        return states

    monkeypatch.setattr(engine, "_hidden", noting)
    (trained,) = train_cohort(engine, [task], frozenset({"B"}), SETTINGS)
    steps = len(seen)
    predicted = engine.predict(trained.adapter, task.examples.input_ids)
    assert len(seen) > steps > 0
    assert set(seen) == {(PackedBatch, dtype)}
    order = np.argsort([len(s) for s in task.examples.input_ids], kind="stable")
    batch = engine.pack([[task.examples.input_ids[i] for i in order]])
    with torch.no_grad():
        logits = engine.logits(engine.encode(batch)).numpy()
    assert np.array_equal(predicted[order[batch.sentences.numpy()]], logits)


@pytest.mark.slow
def test_bfloat16_ends_within_the_spread_of_float32() -> None:
    """The accuracy in bfloat16, mean of three seeds, is off that in float32 by no more than seeds are from each other."""
    data = lora_a2.load_data("helpdesk", max_examples=400)
    ends: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    for seed in range(3):
        for dtype, accuracies in ends.items():
            model = lora_a2.load_model(labels=data.label_names, dtype=dtype, seed=seed)
            members = make_clients(data, model, num_clients=4, seed=seed)
            plan = make_plan(model, members, num_server_rounds=4, eval_every=4, seed=seed)
            *_, (_, last) = simulate(model, members, plan)
            accuracies.append(last.metrics["accuracy"])
    exact, fast = (np.array(ends[dtype]) for dtype in ("float32", "bfloat16"))
    assert min(exact.min(), fast.min()) > 2 / len(data.label_names), "nothing was learnt"
    assert abs(fast.mean() - exact.mean()) <= np.ptp(exact), ends
