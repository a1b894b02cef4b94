"""On a GPU: what is computed there is what is computed on the CPU, family by family, method by method, command by command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_engine import SETTINGS, _mask, _relative

from lora_a2.cli import main
from lora_a2.core.randomness import generator
from lora_a2.core.types import Factor, Layout, ModuleShape
from lora_a2.engine.local import train_cohort
from lora_a2.engine.network import Network
from lora_a2.engine.objective import Objective
from lora_a2.engine.targets import find_target_modules
from lora_a2.engine.work import ClientTask, TokenizedExamples, TrainingSettings, epoch_orders
from lora_a2.federation.population import Client
from lora_a2.methods import METHODS
from lora_a2.model.causal import find_head
from lora_a2.model.pretrained import Model, random_head
from lora_a2.simulation import make_plan, simulate
from lora_a2.tasks.causal_lm import TASK
from lora_a2.tasks.causal_lm.objective import CausalLM
from lora_a2.tasks.classification.objective import Classification
from tiny import CONFIGS, PADDED, POOLING, backbone, clients, examples, random_adapter
from writers import WRITERS, whole_model, writing_clients, writing_options, written

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
EVERY = [*((family, False) for family in (*CONFIGS, *PADDED)), *((family, True) for family in WRITERS)]
OPTIONS = {
    "plain": SETTINGS,
    "accumulated": replace(SETTINGS, gradient_accumulation_steps=2, max_grad_norm=0.5),
    "recomputed": replace(SETTINGS, gradient_checkpointing=True),
}


def network_on(device: str, family: str, writes: bool, dtype: torch.dtype) -> tuple[Network, Any]:
    """A network, and the whole model of one that writes."""
    if writes:
        whole: Any = whole_model(family)
        objective: Objective = CausalLM(find_head(whole, whole.base_model))
        whole.to(device)
        module = whole.base_model
    else:
        whole, module = None, backbone(family).to(device)
        objective = Classification(random_head(3, 16, 4.0, 0), POOLING[family])
    return Network(module, find_target_modules(module), objective=objective, dtype=dtype), whole


def networks(family: str, writes: bool, dtype: torch.dtype) -> list[Network]:
    """The same network on the CPU and on the GPU."""
    return [network_on(device, family, writes, dtype)[0] for device in ("cpu", "cuda")]


def model_on(device: str, family: str, writes: bool) -> Model:
    """A model for clients that are tokenised already."""
    network, whole = network_on(device, family, writes, torch.float32)
    layout = Layout(tuple(ModuleShape(name, layer.d_out, layer.d_in) for name, layer in network.layers.items()))
    labels = () if writes else ("a", "b", "c")
    task = {"task": TASK, "whole": whole} if writes else {}
    return Model(family, network, None, layout, labels, 64, 1, "0" * 64, **task)  # type: ignore[arg-type]


def compare(family: str, writes: bool, trainable: str, settings: TrainingSettings, masked: bool = False) -> None:
    data: list[TokenizedExamples] = [written(n, seed=n) if writes else examples(n, seed=n) for n in (5, 11, 2)]
    here, there = networks(family, writes, torch.float32)
    layout = Layout(tuple(ModuleShape(name, layer.d_out, layer.d_in) for name, layer in here.layers.items()))
    start = random_adapter(layout, rank=4)
    tasks = [
        ClientTask(start, own, _mask(start, k) if masked else None, epoch_orders(len(own), 2, generator(k, "orders")))
        for k, own in enumerate(data)
    ]
    factors: frozenset[Factor] = frozenset(trainable)  # type: ignore[arg-type]
    if settings.gradient_checkpointing:
        here.check_recomputing()
        there.check_recomputing()
    for cohort in [tasks] if not here.alone else [[task] for task in tasks]:
        trained = (train_cohort(network, cohort, factors, settings) for network in (here, there))
        for task, cpu, gpu in zip(cohort, *trained, strict=True):
            assert _relative(gpu.adapter, cpu.adapter, task.start) < 2e-3
            assert gpu.train_loss == pytest.approx(cpu.train_loss, rel=1e-4)


@pytest.mark.parametrize(("family", "writes"), EVERY)
def test_every_family_is_trained_as_on_the_cpu(family: str, writes: bool) -> None:
    compare(family, writes, "AB", SETTINGS)


@pytest.mark.parametrize(("family", "writes"), [("bert", False), ("llama", False), ("llama", True), ("bloom", True)])
@pytest.mark.parametrize("trainable", ["A", "B", "AB"])
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("masked", [False, True])
def test_every_option_trains_as_on_the_cpu(
    family: str, writes: bool, trainable: str, option: str, masked: bool
) -> None:
    compare(family, writes, trainable, OPTIONS[option], masked)


@pytest.mark.parametrize(("family", "writes"), EVERY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_measured_is_what_is_measured_on_the_cpu(family: str, writes: bool, dtype: torch.dtype) -> None:
    here, there = networks(family, writes, dtype)
    data = written(9, seed=3) if writes else examples(9, seed=3)
    cpu, gpu = (network.measure(None, data) for network in (here, there))
    np.testing.assert_allclose(gpu[:, 0], cpu[:, 0], rtol=1e-3 if dtype == torch.float32 else 0.2, atol=1e-3)
    if writes:
        np.testing.assert_array_equal(gpu[:, 1], cpu[:, 1])


@pytest.mark.parametrize("writes", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_as_on_the_cpu(name: str, writes: bool) -> None:
    members: tuple[Client, ...] = (writing_clients if writes else clients)([9, 5, 12, 7])
    mixed = METHODS[name].mixed_ranks
    options: dict[str, Any] = {
        **{"num_server_rounds": 3, "local_epochs": 2, "batch_size": 4, "learning_rate": 3e-3, "r": 4},
        **{"fraction_train": 0.75, "clients_per_pass": 2},
        **({"rank_budget": [1, 3, 2, 4]} if mixed else {}),
    }
    ends = []
    for device in ("cpu", "cuda"):
        model = model_on(device, "llama", writes)
        plan = make_plan(model, members, METHODS[name], **options)
        ends.append([(state, record) for state, record in simulate(model, members, plan)][-1])
    (cpu, told), (gpu, also) = ends
    assert also.uploaded_parameters == told.uploaded_parameters
    assert also.train_loss == pytest.approx(told.train_loss, rel=5e-3)
    for layer, factors in cpu.adapter.factors.items():
        for mine, other in ((gpu.adapter.factors[layer].A, factors.A), (gpu.adapter.factors[layer].B, factors.B)):
            assert np.linalg.norm(mine - other) <= 3e-2 * np.linalg.norm(other) + 1e-7
    for layer, change in cpu.base.items():
        assert np.linalg.norm(gpu.base[layer] - change) <= 0.1 * np.linalg.norm(
            change
        )  # AdamW makes a step of a gradient that is nearly zero


def test_a_run_its_answers_and_its_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the commands that a user types."""
    given = writing_options(tmp_path) | {"device": "cuda", "generate": 2, "output_dir": str(tmp_path / "run")}
    flags = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    assert main(["run", *flags]) == 0
    assert main(["evaluate", str(tmp_path / "run"), "--json"]) == 0
    assert main(["generate", str(tmp_path / "run"), "abc", "--max-new-tokens", "4"]) == 0
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "adapter")]) == 0
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "merged"), "--merged"]) == 0
    capsys.readouterr()
    losses = {}
    for device in ("cpu", "cuda"):
        command = ["evaluate", "--model", str(tmp_path / "merged"), "--data", given["data"], "--device", device]
        assert main([*command, "--task", "causal-lm", "--dtype", "float32", "--json"]) == 0
        losses[device] = json.loads(capsys.readouterr().out)["loss_sum"]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-4)
