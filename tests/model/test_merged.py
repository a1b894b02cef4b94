"""What a run leaves is read right by others: PEFT and plain Transformers give our logits, for every method."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.numpy import load_file
from transformers import AutoModel, AutoTokenizer

from federation import LABELS, save_model, texts
from lora_a2.core.types import ServerState
from lora_a2.engine.work import TokenizedExamples
from lora_a2.federation.population import Client
from lora_a2.methods import METHODS
from lora_a2.model.checkpoint import quiet
from lora_a2.model.peft_io import save_adapter
from lora_a2.model.pretrained import Model, load_model
from lora_a2.runs.jobs import save_result
from lora_a2.runs.predict import load_predictor
from lora_a2.simulation import make_plan, simulate
from tiny import random_adapter

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TEXTS = texts()
POOLING = {"bert": "mean", "gpt2": "last", "llama": "last"}


@pytest.fixture(scope="module", params=[f if f == "bert" else pytest.param(f, marks=pytest.mark.slow) for f in POOLING])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return request.param, str(save_model(tmp_path_factory.mktemp(request.param) / "model", request.param))


def trained(model: Model, method: str) -> ServerState:
    """After two rounds of two clients, so that both factors and the base have moved."""
    ids = model.tokenize(TEXTS)
    examples = TokenizedExamples(ids, np.arange(len(ids)) % len(LABELS))
    clients = [Client(k, f"client {k}", examples, examples.take(np.arange(2))) for k in range(2)]
    plan = make_plan(model, clients, method, num_server_rounds=2, local_epochs=1, r=2, learning_rate=5e-3, batch_size=4)
    return [state for state, _ in simulate(model, clients, plan)][-1]


def logits_elsewhere(folder: Path, base: str, pooling: str) -> np.ndarray:
    """By Transformers, and PEFT where there is an adapter; nothing of ours but the head's file."""
    whole = not (folder / "adapter_config.json").exists()
    with quiet():
        backbone = AutoModel.from_pretrained(folder if whole else base, dtype=torch.float32)
        model = backbone if whole else PeftModel.from_pretrained(backbone, str(folder))
        tokenizer = AutoTokenizer.from_pretrained(folder if whole else base)
    batch = tokenizer(TEXTS, padding=True, padding_side="right", return_tensors="pt")
    mask = batch["attention_mask"]
    with torch.no_grad():
        hidden = model.eval()(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
    mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    vectors = mean if pooling == "mean" else hidden[torch.arange(len(TEXTS)), mask.sum(1) - 1]
    head = load_file(folder / "head.safetensors")
    return np.asarray(vectors.numpy() @ head["weight"].T + head["bias"])


@pytest.fixture(scope="module")
def transposed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return "gpt2", str(save_model(tmp_path_factory.mktemp("gpt2") / "model", "gpt2"))


@pytest.mark.parametrize("method", ["flora", "fedex-lora", "full"])
def test_weights_that_are_kept_transposed(method: str, transposed: tuple[str, str], tmp_path: Path) -> None:
    test_others_read_what_a_run_leaves(method, transposed, tmp_path)


@pytest.mark.parametrize("method", METHODS)
def test_others_read_what_a_run_leaves(method: str, source: tuple[str, str], tmp_path: Path) -> None:
    family, base = source
    model = load_model(base, labels=LABELS, dtype="float32", pooling=POOLING[family])
    state = trained(model, method)
    folder = tmp_path / "result"
    save_result(folder, model, state)
    moved = bool(state.base)
    assert (folder / "adapter_config.json").exists() is not moved
    elsewhere = folder.rename(tmp_path / "moved")
    by_others = logits_elsewhere(elsewhere, base, POOLING[family])
    ours = load_predictor(elsewhere).logits(TEXTS)
    assert np.abs(by_others - ours).max() <= 1e-5 * np.abs(ours).max()
    model.network.set_base({})
    plain = model.network.predict(None, model.tokenize(TEXTS))
    assert np.abs(ours - plain).max() > 1e-4 or method == "fedsa-lora"


PEFT_0_10 = frozenset(
    {
        *("peft_type", "auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode", "r"),
        *("target_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "bias", "use_rslora", "modules_to_save"),
        *("init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern"),
        *("megatron_config", "megatron_core", "loftq_config", "use_dora", "layer_replication"),
    }
)
"""The fields of LoraConfig in PEFT 0.10.0, which refuses others."""


def test_the_configuration_is_what_old_and_new_releases_of_peft_read(source: tuple[str, str], tmp_path: Path) -> None:
    family, base = source
    model = load_model(base, labels=LABELS, dtype="float32")
    save_adapter(tmp_path / "adapter", model, random_adapter(model.layout, 2))
    values = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert values.keys() <= PEFT_0_10
    assert values.keys() <= {field.name for field in dataclasses.fields(LoraConfig)}
    assert values["fan_in_fan_out"] is (family == "gpt2")
