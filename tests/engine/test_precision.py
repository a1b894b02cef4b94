"""bfloat16 beside float32: which is chosen, that training and evaluation go the same way, and that accuracy does not suffer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

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


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"avx2", "avx512f", "avx512_vnni"}, False),
        ({"avx2", "avx512_bf16"}, True),
        ({"avx2", "amx_bf16", "amx_tile"}, True),
        ({"asimd", "i8mm"}, False),
        ({"asimd", "bf16"}, True),
        (set(), False),  # no /proc/cpuinfo
    ],
)
def test_a_cpu_is_asked_for_its_instructions(flags: set[str], expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "processor_flags", lambda: frozenset(flags))
    assert precision._bfloat16_pays(CPU) is expected
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not precision._bfloat16_pays(CPU), "the instructions are of no use without the library that has them"


def test_auto_is_not_a_matter_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """No clock is read: a loaded machine chooses as an idle one does."""

    def read() -> float:
        raise AssertionError("a clock was read")

    for clock in ("time", "perf_counter", "monotonic", "process_time", "thread_time"):
        monkeypatch.setattr(time, clock, read)
        monkeypatch.setattr(time, f"{clock}_ns", read)
    chosen = pick_dtype("auto", CPU)
    monkeypatch.undo()
    assert chosen in precision.DTYPES.values()


@pytest.mark.parametrize(("native", "expected"), [(True, True), (False, False)])
def test_an_accelerator_is_asked_whether_it_emulates(
    native: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    current: list[torch.device] = []

    @contextmanager
    def made_current(device: torch.device) -> Iterator[None]:
        current.append(device)
        yield

    module = SimpleNamespace(device=made_current, is_bf16_supported=lambda including_emulation: native)
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    assert precision._bfloat16_pays(torch.device("cuda:1")) is expected
    assert current == [torch.device("cuda:1")]
    monkeypatch.setattr(torch, "get_device_module", lambda device: SimpleNamespace())
    assert precision._bfloat16_pays(torch.device("mps")) is False


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
        logits = engine.objective.logits(engine.encode(batch)).numpy()
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
