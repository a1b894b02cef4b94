"""The engine on a GPU: what it computes there is what the slow trainer computes on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_engine import SETTINGS, _relative

from lora_a2.core.randomness import generator
from lora_a2.core.types import Factor, Layout, ModuleShape
from lora_a2.engine.local import train_cohort
from lora_a2.engine.network import Network
from lora_a2.engine.objective import Objective
from lora_a2.engine.targets import find_target_modules
from lora_a2.engine.work import ClientTask, TokenizedExamples, epoch_orders
from lora_a2.model.causal import find_head
from lora_a2.model.pretrained import random_head
from lora_a2.tasks.causal_lm.objective import CausalLM
from lora_a2.tasks.classification.objective import Classification
from tiny import POOLING, backbone, examples, random_adapter
from writers import whole_model, written

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")


def networks(family: str, writes: bool, dtype: torch.dtype) -> list[Network]:
    """The same network on the CPU and on the GPU."""
    found = []
    for device in ("cpu", "cuda"):
        if writes:
            whole = whole_model(family)
            objective: Objective = CausalLM(find_head(whole, whole.base_model))
            module: Any = whole.base_model.to(device)
        else:
            module, objective = backbone(family).to(device), Classification(random_head(3, 16, 4.0, 0), POOLING[family])
        found.append(Network(module, find_target_modules(module), objective=objective, dtype=dtype))
    return found


@pytest.mark.parametrize(
    ("family", "writes"), [("bert", False), ("llama", False), ("llama", True), ("gpt2", True), ("bloom", True)]
)
@pytest.mark.parametrize("trainable", ["A", "B", "AB"])
def test_a_cohort_is_trained_as_on_the_cpu(family: str, writes: bool, trainable: str) -> None:
    data: list[TokenizedExamples] = [written(n, seed=n) if writes else examples(n, seed=n) for n in (5, 11, 2)]
    here, there = networks(family, writes, torch.float32)
    layout = Layout(tuple(ModuleShape(name, layer.d_out, layer.d_in) for name, layer in here.layers.items()))
    start = random_adapter(layout, rank=4)
    tasks = [
        ClientTask(start, own, None, epoch_orders(len(own), 2, generator(k, "orders"))) for k, own in enumerate(data)
    ]
    factors: frozenset[Factor] = frozenset(trainable)  # type: ignore[arg-type]
    each = [tasks] if not here.alone else [[task] for task in tasks]
    for cohort in each:
        pairs = zip(
            cohort,
            train_cohort(here, cohort, factors, SETTINGS),
            train_cohort(there, cohort, factors, SETTINGS),
            strict=True,
        )
        for task, cpu, gpu in pairs:
            assert _relative(gpu.adapter, cpu.adapter, task.start) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_measured_is_what_is_measured_on_the_cpu(dtype: torch.dtype) -> None:
    here, there = networks("llama", True, dtype)
    data = written(9, seed=3)
    cpu, gpu = here.measure(None, data), there.measure(None, data)
    np.testing.assert_allclose(gpu[:, 0], cpu[:, 0], rtol=1e-3 if dtype == torch.float32 else 0.1)
    np.testing.assert_array_equal(gpu[:, 1], cpu[:, 1])
