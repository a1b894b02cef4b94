"""The built-in language models have the sizes that their authors publish."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from lora_a2.config.opening import absolute_names
from lora_a2.engine.targets import find_target_modules
from lora_a2.model.backbone import find_source
from lora_a2.model.catalog import full_parameters, meta_backbone, model_config
from lora_a2.model.language_models import HUB_IDS, LANGUAGE_MODELS
from lora_a2.model.names import ALIASES, BUILT_IN

PUBLISHED = {
    "Llama-3.2-1B": 1_235_814_400,
    "Llama-3.2-3B": 3_212_749_824,
    "Llama-3.1-8B": 8_030_261_248,
    "Mistral-7B-v0.3": 7_248_023_552,
    "Qwen2.5-0.5B": 494_032_768,
    "Qwen2.5-1.5B": 1_543_714_304,
    "Qwen2.5-7B": 7_615_616_512,
    "Qwen3-0.6B": 751_632_384 - 151936 * 1024,  # published with the embeddings twice, as in its file
    "Qwen3-1.7B": 2_031_739_904 - 151936 * 2048,
    "Qwen3-8B": 8_190_735_360,
    "SmolLM2-135M": 134_515_008,
    "SmolLM2-135M-Instruct": 134_515_008,
    "SmolLM2-360M": 361_821_120,
    "SmolLM2-1.7B": 1_711_376_384,
    "gemma-2-2b": 2_614_341_888,
    "gemma-3-1b-pt": 999_885_952,
    "Phi-3.5-mini-instruct": 3_821_079_552,
    "phi-2": 2_779_683_840,
    "TinyLlama-1.1B-Chat-v1.0": 1_100_048_384,
    "opt-1.3b": 1_315_758_080,
    "pythia-1.4b": 1_414_647_808,
    "bloom-560m": 559_214_592,
    "falcon-7b": 7_217_189_760 - 65024 * 4544,
}
"""Weights with the head, counted once where it is the embeddings."""


def test_every_one_is_built_in_under_its_name_and_its_hub_s() -> None:
    assert set(PUBLISHED) == set(LANGUAGE_MODELS) == set(HUB_IDS) and len(PUBLISHED) == 23
    assert set(LANGUAGE_MODELS) <= set(BUILT_IN)
    assert {ALIASES[hub_id]: hub_id for hub_id in HUB_IDS.values()} == HUB_IDS


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str) -> None:
    config = model_config(HUB_IDS[name])
    with torch.device("meta"):
        whole = AutoModelForCausalLM.from_config(config)
    assert sum(weight.numel() for weight in whole.parameters()) == PUBLISHED[name]
    head = whole.get_output_embeddings()
    tied = head.weight is whole.get_input_embeddings().weight
    own = 0 if tied else sum(weight.numel() for weight in head.parameters())
    assert full_parameters(config) == PUBLISHED[name] - own


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_what_is_adapted_in_each_layer(name: str) -> None:
    """Every layer has the same linear modules, and all weights that are no embedding, norm or bias are in them."""
    backbone = meta_backbone(model_config(name))
    modules = find_target_modules(backbone)
    layers = backbone.config.num_hidden_layers
    assert len(modules) % layers == 0
    inside = sum(module.d_out * module.d_in for module in modules)
    embedded = sum(m.weight.numel() for m in backbone.modules() if isinstance(m, torch.nn.Embedding))
    matrices = sum(weight.numel() for weight in backbone.parameters() if weight.ndim > 1)
    assert inside == matrices - embedded


@pytest.mark.parametrize("name", ["Llama-3.2-1B", "gemma-3-1b", "HuggingFaceTB/SmolLM2-135M-Instruct"])
def test_weights_are_looked_for_under_the_hub_s_name(name: str) -> None:
    hub_id = HUB_IDS[ALIASES.get(name, name)]
    assert (find_source(name).where, find_source(name).name) == (hub_id, hub_id)


def test_a_folder_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "phi-2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_source("phi-2").where == find_source("phi-2").name == str(tmp_path / "phi-2")
    assert absolute_names({"model": "phi-2"}, tmp_path) == {"model": str(tmp_path / "phi-2")}
    (tmp_path / "mpnet-base").mkdir()
    assert absolute_names({"model": "mpnet-base"}, tmp_path) == {"model": "mpnet-base"}
