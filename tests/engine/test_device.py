"""What training asks of a device, shown on PyTorch's `meta` device: it holds no values, so that a step that reads one back (on a GPU: that
waits for it), or that mixes host and device, fails."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lora_a2.engine.kernels.frozen import FrozenWeight
from lora_a2.engine.local import CohortTraining
from lora_a2.engine.network import Network
from lora_a2.engine.work import ClientTask, TrainingSettings, epoch_orders
from tiny import backbone, examples, model_of, random_adapter

META = torch.device("meta")
SETTINGS = TrainingSettings(batch_size=4, learning_rate=1e-2, learning_rate_ratio=1.0, weight_decay=0.01)


def moved(classifier: Network) -> Network:
    """The classifier with everything that it holds on the meta device."""
    memo: dict[int, Any] = {}
    for value in _held(classifier, set()):
        if isinstance(value, FrozenWeight):
            memo[id(value)] = FrozenWeight(value.weight.to(META), None if value.bias is None else value.bias.to(META))
        else:
            there = value.detach().to(META)
            memo[id(value)] = nn.Parameter(there, value.requires_grad) if isinstance(value, nn.Parameter) else there
    found = copy.deepcopy(classifier, memo)
    found.device = META
    return found


def _held(value: Any, seen: set[int]) -> Iterator[Tensor | FrozenWeight]:
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor | FrozenWeight):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _held(item, seen)
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from _held(item, seen)
    elif type(value).__module__.split(".")[0] in ("lora_a2", "transformers", "torch") and hasattr(value, "__dict__"):
        yield from _held(vars(value), seen)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "llama"])
@pytest.mark.parametrize("trainable", [("B",), ("A",), ("A", "B")])
@pytest.mark.parametrize("masked", [False, True])
def test_no_step_waits_for_the_device(family: str, trainable: tuple[str, ...], masked: bool) -> None:
    model = model_of(backbone(family), family)
    start, rng = random_adapter(model.layout, 4), np.random.default_rng(0)
    last = list(start.factors)[-1]
    mask = {name: np.full(4, name == last) for name in start.factors} if masked else None
    clients = [examples(n, seed=n) for n in (7, 12, 4)]
    tasks = [ClientTask(start, client, mask, epoch_orders(len(client.labels), 2, rng)) for client in clients]
    training = CohortTraining(moved(model.network), tasks, frozenset(trainable), SETTINGS)  # type: ignore[arg-type]
    steps = 0
    for clients, gradient in training._gradients(0, None):
        assert gradient.device == META
        training._optimizer.step(gradient, clients)
        steps += 1
    assert steps == 6  # of the largest client
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        training._results()  # what is read back, once
