"""Blocks computed once more in the backward pass: the same gradients bit for bit, and activations that are not kept."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_accumulation import data_of, tasks_of
from test_engine import _relative
from transformers import AlbertConfig, AutoModel, AutoModelForCausalLM, LlamaConfig

from families import VOCABULARY
from federation import tiny_clients
from lora_a2.core.types import Factor
from lora_a2.engine.full import train_full, weight_gradients
from lora_a2.engine.local import train_cohort
from lora_a2.engine.network import Network
from lora_a2.engine.targets import find_target_modules
from lora_a2.engine.work import TrainingSettings
from lora_a2.errors import ModelError
from lora_a2.model.pretrained import random_head
from lora_a2.simulation import make_plan
from lora_a2.tasks.classification.objective import Classification
from tiny import CONFIGS, PADDED, backbone, classifier, model_of
from writers import WRITERS, whole_model, writing_network

PLAIN = TrainingSettings(4, learning_rate=2e-3, learning_rate_ratio=5.0)
AGAIN = replace(PLAIN, gradient_checkpointing=True)
WAYS: list[frozenset[Factor]] = [frozenset({"A"}), frozenset({"B"}), frozenset({"A", "B"})]


def agree(network: Network, tasks: list[Any], trainable: frozenset[Factor]) -> None:
    network.check_recomputing()
    cached = getattr(network.backbone.config, "use_cache", None)
    for part in [[t] for t in tasks] if network.alone else [tasks]:
        found, expected = (train_cohort(network, part, trainable, s) for s in (AGAIN, PLAIN))
        assert getattr(network.backbone.config, "use_cache", None) == cached
        for task, one, other in zip(part, found, expected, strict=True):
            if network.batching == "padded":  # without a cache some models mask otherwise, and round otherwise
                assert one.train_loss == pytest.approx(other.train_loss, rel=1e-6)
                assert _relative(one.adapter, other.adapter, task.start) < 1e-3
                continue
            assert one.train_loss == other.train_loss
            for name, f in other.adapter.factors.items():
                assert np.array_equal(one.adapter.factors[name].A, f.A)
                assert np.array_equal(one.adapter.factors[name].B, f.B)


@pytest.mark.parametrize("family", [*CONFIGS, *PADDED])
@pytest.mark.parametrize("trainable", WAYS, ids=lambda w: "".join(sorted(w)))
def test_classifiers_are_trained_the_same(family: str, trainable: frozenset[Factor]) -> None:
    """With masks that leave the first block alone too, so that what is known below the second one is fed in."""
    network, layout = classifier(backbone(family), family)
    tasks = tasks_of("bert" if family == "bert" else "classifier", layout, [5, 9])
    agree(network, tasks, trainable)
    if len(trainable) == 1:
        mask = {name: np.array([True, False, ".1." in name]) & (".1." in name) for name in tasks[0].start.factors}
        agree(network, [replace(task, mask=mask) for task in tasks], trainable)


@pytest.mark.parametrize("family", WRITERS)
def test_models_that_write_are_trained_the_same(family: str) -> None:
    network, layout = writing_network(whole_model(family))
    agree(network, tasks_of("llama", layout, [5, 9]), frozenset({"A", "B"}))


@pytest.mark.parametrize("kind", ["bert", "rembert", "llama", "gpt2", "bloom"])
def test_every_weight_is_trained_the_same(kind: str) -> None:
    writes = kind in ("llama", "gpt2", "bloom")
    network, layout = writing_network(whole_model(kind)) if writes else classifier(backbone(kind), kind)
    (task,) = tasks_of("llama" if writes else kind, layout, [9])
    found, expected = (train_full(network, task, {}, settings) for settings in (AGAIN, PLAIN))
    assert found[2] == expected[2]
    for name, change in expected[0].items():
        assert np.array_equal(found[0][name], change), name
    gradients, others = (
        weight_gradients(network, task.start, task.examples, settings)[0] for settings in (AGAIN, PLAIN)
    )
    assert all(np.array_equal(gradients[name], other) for name, other in others.items())


@contextmanager
def kept() -> Iterator[dict[int, int]]:
    """Bytes that autograd keeps for the backward pass, by the storages that they lie in."""
    found: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)  # so that no storage is used twice
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found


def deep(layers: int, writes: bool) -> tuple[Network, Any]:
    torch.manual_seed(0)
    config = copy.deepcopy(CONFIGS["llama"])
    assert isinstance(config, LlamaConfig)
    config.num_hidden_layers, config.vocab_size = layers, VOCABULARY
    if writes:
        return writing_network(AutoModelForCausalLM.from_config(config).eval())
    return classifier(AutoModel.from_config(config).eval(), "llama")


def bytes_kept(layers: int, settings: TrainingSettings, writes: bool, whole: bool) -> int:
    network, layout = deep(layers, writes)
    (task,) = tasks_of("llama" if writes else "classifier", layout, [4], epochs=1)
    with kept() as found:
        if whole:
            train_full(network, task, {}, settings)
        else:
            train_cohort(network, [task], frozenset({"B"}), settings)
    return sum(found.values())


@pytest.mark.parametrize("writes", [False, True])
def test_what_is_kept_shrinks_to_what_enters_each_block(writes: bool) -> None:
    """A block more costs its input, (rows, 16) float32, and many times that without."""
    rows = sum(len(ids) for ids in data_of("llama" if writes else "bert", 4, 0).input_ids)
    rows = -(-(rows + 1) // 16) * 16
    more, plain = (
        bytes_kept(6, settings, writes, False) - bytes_kept(5, settings, writes, False) for settings in (AGAIN, PLAIN)
    )
    assert more == rows * 16 * 4
    assert plain > 8 * more


def test_what_is_kept_shrinks_for_every_weight_too() -> None:
    assert bytes_kept(6, AGAIN, False, True) < 0.5 * bytes_kept(6, PLAIN, False, True)


def test_models_that_cannot_are_refused_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(backbone("bert"), "bert")
    clients = tiny_clients((4, 3))
    usual: dict[str, Any] = {"r": 2, "rank_budget": 1, "gradient_checkpointing": True}
    assert make_plan(model, clients, **usual).federation.training.gradient_checkpointing

    block = model.network.backbone.get_submodule("encoder.layer.1")
    plain, calls = block.forward, [0]

    def forgetful(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        return plain(*args, **kwargs) * calls[0]

    monkeypatch.setattr(block, "forward", forgetful, raising=False)
    with pytest.raises(ModelError, match="has other gradients where its blocks are computed once more"):
        make_plan(model, clients, **usual)


def test_a_model_whose_blocks_are_one_module_can() -> None:
    """ALBERT calls one block many times."""
    config = AlbertConfig(
        vocab_size=50,
        embedding_size=16,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=24,
    )
    model = AutoModel.from_config(config).eval()
    model.pooler = None
    modules = find_target_modules(model)
    Network(model, modules, objective=Classification(random_head(3, 16, 4.0, seed=0), "mean")).check_recomputing()
