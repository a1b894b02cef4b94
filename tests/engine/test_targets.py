"""Target modules and layouts, against real Transformers modules; the built-in catalog."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    RobertaConfig,
)

from lora_a2.engine.targets import find_target_modules
from lora_a2.errors import ModelError
from lora_a2.model.catalog import full_parameters, meta_backbone, model_config
from lora_a2.model.names import ALIASES, BUILT_IN

BERT_ENDS = [
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
]
TINY: dict[str, Any] = {"vocab_size": 11, "hidden_size": 12, "num_hidden_layers": 3, "num_attention_heads": 2}
FAMILIES: dict[str, tuple[PretrainedConfig, str, list[str], list[tuple[int, int]]]] = {
    "bert": (
        BertConfig(**TINY, intermediate_size=20),
        "encoder.layer",
        BERT_ENDS,
        [(12, 12)] * 4 + [(20, 12), (12, 20)],
    ),
    "roberta": (
        RobertaConfig(**TINY, intermediate_size=28),
        "encoder.layer",
        BERT_ENDS,
        [(12, 12)] * 4 + [(28, 12), (12, 28)],
    ),
    "distilbert": (
        DistilBertConfig(vocab_size=11, dim=12, n_layers=3, n_heads=2, hidden_dim=20),
        "transformer.layer",
        ["attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin", "ffn.lin1", "ffn.lin2"],
        [(12, 12)] * 4 + [(20, 12), (12, 20)],
    ),
    "llama": (
        LlamaConfig(**TINY, num_key_value_heads=1, intermediate_size=20),
        "layers",
        [f"self_attn.{n}_proj" for n in "qkvo"] + [f"mlp.{n}_proj" for n in ("gate", "up", "down")],
        [(12, 12), (6, 12), (6, 12), (12, 12), (20, 12), (20, 12), (12, 20)],
    ),
    "gpt2": (
        GPT2Config(vocab_size=11, n_embd=12, n_layer=3, n_head=2, n_inner=20),
        "h",
        ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
        [(36, 12), (12, 12), (20, 12), (12, 20)],
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pooling", [False, True])
def test_default_is_every_linear_layer_of_every_block(family: str, pooling: bool) -> None:
    config, blocks, ends, shapes = FAMILIES[family]
    found = find_target_modules(meta_backbone(config, pooling=pooling))
    assert [m.name for m in found] == [f"{blocks}.{i}.{end}" for i in range(3) for end in ends]
    assert [(m.d_out, m.d_in) for m in found] == shapes * 3


@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_are_those_of_the_computation(family: str) -> None:
    config, *_ = FAMILIES[family]
    backbone = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
    for shape in find_target_modules(backbone):
        layer = backbone.get_submodule(shape.name)
        assert layer(torch.zeros(1, shape.d_in)).shape == (1, shape.d_out)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_is_the_default(family: str) -> None:
    backbone = meta_backbone(FAMILIES[family][0])
    default = find_target_modules(backbone)
    assert find_target_modules(backbone, "all-linear") == default
    assert find_target_modules(backbone, ["all-linear"]) == default


def bert(pooling: bool = False) -> torch.nn.Module:
    return meta_backbone(FAMILIES["bert"][0], pooling)


def test_suffixes_match_whole_components_in_the_models_order() -> None:
    names = [m.name for m in find_target_modules(bert(), ["value", "query"])]
    assert names == [f"encoder.layer.{i}.attention.self.{n}" for i in range(3) for n in ("query", "value")]
    with pytest.raises(ModelError, match="'uery'"):
        find_target_modules(bert(), ["uery"])


def test_a_suffix_reaches_outside_the_blocks_as_in_peft() -> None:
    assert len(find_target_modules(bert(pooling=True), ["dense"])) == 3 * 3 + 1
    assert [m.name for m in find_target_modules(bert(pooling=True), ["pooler.dense"])] == ["pooler.dense"]


def test_a_string_is_a_regular_expression_for_the_full_name() -> None:
    found = find_target_modules(bert(), r"encoder\.layer\.[01]\..*\.(query|key)")
    assert [m.name.rsplit(".", 1)[1] for m in found] == ["query", "key", "query", "key"]
    for wrong in ("query", "("):
        with pytest.raises(ModelError, match="target_modules"):
            find_target_modules(bert(), wrong)


def test_names_that_match_nothing_are_listed_with_what_there_is() -> None:
    with pytest.raises(ModelError, match=r"'q_proj', 'v_proj' .*attention\.self\.query, .*, output\.dense"):
        find_target_modules(bert(), ["query", "q_proj", "v_proj"])
    with pytest.raises(ModelError, match="empty list"):
        find_target_modules(bert(), [])
    with pytest.raises(ModelError, match="no linear layer"):
        find_target_modules(torch.nn.Sequential(torch.nn.Embedding(2, 2)))


def test_a_blocks_experts_are_not_the_blocks() -> None:
    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = torch.nn.Linear(2, 3)
            self.experts = torch.nn.ModuleList(torch.nn.Linear(2, 5) for _ in range(7))

    model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([Block(), Block()]), "out": torch.nn.Linear(5, 2)})
    assert len(find_target_modules(model)) == 2 * (1 + 7)


def test_modules_of_roberta_base() -> None:
    modules = find_target_modules(meta_backbone(model_config("roberta-base")))
    assert len(modules) == 72
    assert sum(m.d_in for m in modules) == sum(m.d_out for m in modules) == 82_944


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("FacebookAI/roberta-base", 124_645_632),
        ("roberta-large", 355_359_744),
        ("bert-base-uncased", 109_482_240),
        ("distilbert/distilbert-base-uncased", 66_362_880),
        ("sentence-transformers/all-MiniLM-L6-v2", 22_713_216),
        ("gpt2", 124_439_808),
        ("meta-llama/Llama-3.2-1B", 1_235_814_400),
    ],
)
def test_built_in_models_have_their_published_sizes(name: str, parameters: int) -> None:
    assert full_parameters(model_config(name)) == parameters


def test_every_alias_leads_somewhere() -> None:
    assert set(ALIASES.values()) == set(BUILT_IN)


def test_a_local_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": 24}))
    assert model_config(str(tmp_path)).hidden_size == 24


@pytest.mark.parametrize("content", [None, "{", "{}", '{"model_type": "no-such"}'])
def test_a_folder_without_a_usable_config_is_a_model_error(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match=r"no usable config\.json") as caught:
        model_config(str(tmp_path))
    assert "\n" not in str(caught.value)
