"""Models whose weights, tokenizer or pooling are not what their folder seems to hold are refused, in one line that names it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as T
from safetensors.torch import load_file, save_file

from lora_a2.data.labelled import Examples
from lora_a2.errors import ModelError
from lora_a2.model.catalog import LARGEST_DEPTH, LARGEST_LABELS, meta_backbone, model_config
from lora_a2.model.checkpoint import load_weights
from lora_a2.model.fingerprint import fingerprint, unused
from lora_a2.model.peft_io import save_adapter
from lora_a2.model.pooling import usual_pooling
from lora_a2.model.pretrained import load_model
from tiny import LABELS, WORDS, backbone, random_adapter

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be damaged."""
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(edit(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})


def configure(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


LAYER = "encoder.layer.1."
EDITS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], str]] = {
    "prefix": (lambda w: {f"module.{k}": v for k, v in w.items()}, r"lacks .* and \d+ more, and has module\."),
    "missing layer": (lambda w: {k: v for k, v in w.items() if not k.startswith(LAYER)}, rf"lacks {LAYER}"),
    "one missing": (lambda w: {k: v for k, v in w.items() if k != f"{LAYER}output.dense.bias"}, f"lacks {LAYER}output"),
    "layer too many": (
        lambda w: {**w, **{k.replace(LAYER, "encoder.layer.2."): v + 1 for k, v in w.items() if k.startswith(LAYER)}},
        r"no place for: encoder\.layer\.2\.",
    ),
    "an adapter's": (
        lambda w: {**w, f"{LAYER}output.dense.lora_A.weight": torch.zeros(2, 24)},
        r"no place for: .*lora_A",
    ),
    "other shape": (
        lambda w: {**w, "embeddings.word_embeddings.weight": torch.zeros(50, 8)},
        r"word_embeddings.weight is \(50, 8\) in the file and \(50, 16\)",
    ),
}


@pytest.mark.parametrize(("edit", "message"), EDITS.values(), ids=EDITS)
def test_weights_that_are_not_the_models_are_named(
    folder: Path, edit: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], message: str
) -> None:
    change(folder, edit)
    with pytest.raises(ModelError, match=message):
        load_model(str(folder), labels=LABELS)


SMALL: dict[str, Any] = {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BLOCKS: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    **SMALL,
}
HEADS: list[tuple[type[Any], Any]] = [
    (T.AutoModelForSequenceClassification, T.BertConfig(**BLOCKS)),
    (T.AutoModelForMaskedLM, T.BertConfig(**BLOCKS)),
    (T.AutoModelForMaskedLM, T.RobertaConfig(**BLOCKS)),
    (T.AutoModelForSequenceClassification, T.RobertaConfig(**BLOCKS)),
    (T.AutoModelForMaskedLM, T.DistilBertConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=24, **SMALL)),
    (T.AutoModelForMaskedLM, T.MPNetConfig(**BLOCKS)),
    (T.AutoModelForMaskedLM, T.ModernBertConfig(**BLOCKS, cls_token_id=1, sep_token_id=2)),
    (T.AutoModelForTokenClassification, T.DebertaV2Config(**BLOCKS)),
    (T.AutoModelForSequenceClassification, T.ElectraConfig(embedding_size=8, **BLOCKS)),
    (T.AutoModelForCausalLM, T.GPT2Config(n_embd=16, n_layer=2, n_head=2, **SMALL)),
    (T.AutoModelForCausalLM, T.LlamaConfig(**BLOCKS)),
    (T.AutoModelForSequenceClassification, T.LlamaConfig(**BLOCKS)),
    (T.AutoModelForCausalLM, T.Qwen3Config(head_dim=8, **BLOCKS)),
    (T.AutoModelForCausalLM, T.Gemma2Config(head_dim=8, num_key_value_heads=1, **BLOCKS)),
    (T.AutoModelForCausalLM, T.BloomConfig(n_layer=2, n_head=2, hidden_size=16, **SMALL)),
    (T.AutoModelForCausalLM, T.OPTConfig(ffn_dim=24, word_embed_proj_dim=16, **BLOCKS)),
]


@pytest.mark.parametrize(("head", "config"), HEADS, ids=[f"{h.__name__}-{c.model_type}" for h, c in HEADS])
def test_a_checkpoint_with_a_head_gives_every_weight_of_the_backbone(
    head: type[Any], config: Any, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    whole = head.from_config(config)
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.add_(torch.randn_like(parameter))
    whole.save_pretrained(tmp_path)
    for _ in range(2):
        found = load_weights("it", str(tmp_path)).state_dict()
        saved = {k.removeprefix(f"{whole.base_model_prefix}."): v for k, v in whole.state_dict().items()}
        used = {name: value for name, value in found.items() if not unused(name)}
        assert used and all(torch.equal(value, saved[name]) for name, value in used.items())


def pointer(folder: Path) -> None:
    (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 90868376\n")


def cut(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def one_shard(folder: Path) -> None:
    names = load_file(folder / WEIGHTS)
    shards = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    kept = {name: v for name, v in names.items() if shards[name].startswith("model-00001")}
    save_file(kept, folder / "model-00001-of-00002.safetensors", metadata={"format": "pt"})
    (folder / WEIGHTS).unlink()


def text(name: str, content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(content) and None


BROKEN: dict[str, Callable[[Path], None]] = {
    "lfs pointer": pointer,
    "cut": cut,
    "empty": text(WEIGHTS, ""),
    "none": without(WEIGHTS),
    "pickle only": pickled,
    "missing shard": one_shard,
    "config is a list": text("config.json", "[]"),
    "config is no JSON": text("config.json", "{"),
    "config without a type": text("config.json", "{}"),
    "layers without end": lambda folder: configure(folder, num_hidden_layers=10**9),
    "width without end": lambda folder: configure(folder, hidden_size=10**12),
    "depth of a wrong type": lambda folder: configure(folder, num_hidden_layers="two"),
    "tokenizer is no JSON": text("tokenizer.json", "{"),
}


@pytest.mark.parametrize("damage", BROKEN.values(), ids=BROKEN)
def test_broken_files_are_one_line(folder: Path, damage: Callable[[Path], None]) -> None:
    damage(folder)
    with pytest.raises(ModelError) as caught:
        load_model(str(folder), labels=LABELS)
    assert "\n" not in str(caught.value)


def test_a_folder_without_tokenizer_files_is_refused(folder: Path) -> None:
    for name in ("tokenizer.json", "vocab.txt"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(ModelError, match=r"has no tokenizer: none of tokenizer.json, vocab.txt"):
        load_model(str(folder), labels=LABELS)


def test_tokens_without_an_embedding_are_refused(folder: Path) -> None:
    tokenizer = T.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"kiwi{i}" for i in range(40)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match="embeddings for 50 tokens, but its tokenizer has one with the id 74"):
        load_model(str(folder), labels=LABELS)


def test_texts_that_the_tokenizer_does_not_know_are_refused(model_folder: Path) -> None:
    model = load_model(str(model_folder), labels=LABELS)
    known = [f"{word} strange" for word in WORDS]
    assert len(model.tokenize([*known, WORDS[0]])) == len(WORDS) + 1
    with pytest.raises(ModelError, match="does not know 67 % of the tokens"):
        model.encode(Examples(tuple(f"{word} quite strange" for word in WORDS), np.zeros(len(WORDS), np.int64), None))


POOLINGS: list[tuple[Any, str | None]] = [
    ({"pooling_mode": "cls"}, "cls"),
    ({"pooling_mode": "mean", "include_prompt": True}, "mean"),
    ({"pooling_mode": "lasttoken"}, "last"),
    ({"pooling_mode": ["mean"]}, "mean"),
    ({"pooling_mode": "max"}, None),
    ({"pooling_mode": "weightedmean"}, None),
    ({"pooling_mode": ["mean", "cls"]}, None),
    ({"pooling_mode": None}, None),
    ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
    ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
    ({"pooling_mode_lasttoken": True}, "last"),
    ({"pooling_mode_max_tokens": True}, None),
    ({"pooling_mode_mean_sqrt_len_tokens": True}, None),
    ({"pooling_mode_weightedmean_tokens": True}, None),
    ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, None),
    ({"word_embedding_dimension": 16}, None),
    ([], None),
]
TYPES = "sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling"


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize(("values", "expected"), POOLINGS)
def test_the_pooling_of_sentence_transformers_is_read_or_refused(
    values: Any, expected: str | None, listed: bool, tmp_path: Path
) -> None:
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(values))
    if listed:
        modules = [{"path": path, "type": kind} for path, kind in zip(("", "1_Pooling"), TYPES, strict=True)]
        (tmp_path / "modules.json").write_text(json.dumps(modules))
    config = T.BertConfig()
    if expected is None:
        with pytest.raises(ModelError):
            usual_pooling(str(tmp_path), config)
    else:
        assert usual_pooling(str(tmp_path), config) == expected


def test_other_modules_of_sentence_transformers_are_refused_unless_a_pooling_is_given(folder: Path) -> None:
    modules = [{"path": "", "type": TYPES[0]}, {"path": "2_Dense", "type": "sentence_transformers.models.Dense"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelError, match=r"models\.Dense, which is not known here: give --pooling"):
        load_model(str(folder), labels=LABELS)
    assert load_model(str(folder), labels=LABELS, pooling="cls").network.objective.pooling == "cls"


def test_decoders_pool_the_last_token() -> None:
    kinds = [T.GPT2Config(), T.LlamaConfig(), T.MistralConfig(), T.Qwen2Config(), T.BloomConfig()]
    assert {usual_pooling(str(Path(__file__).parent), config) for config in kinds} == {"last"}
    kinds = [T.BertConfig(), T.RobertaConfig(), T.ModernBertConfig(), T.MPNetConfig()]
    assert {usual_pooling(str(Path(__file__).parent), config) for config in kinds} == {"mean"}


def test_a_fingerprint_is_of_the_values_whatever_the_files(folder: Path) -> None:
    before, whole = fingerprint(load_weights("it", str(folder))), load_model(str(folder), labels=LABELS).fingerprint
    load_weights("it", str(folder)).save_pretrained(folder, max_shard_size="10kB")
    (folder / WEIGHTS).unlink(missing_ok=True)
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert fingerprint(load_weights("it", str(folder))) == before
    moved = Path(shutil.copytree(folder, folder.parent / "elsewhere"))
    assert load_model(str(moved), labels=LABELS).fingerprint == whole


def test_any_changed_value_gives_another_fingerprint() -> None:
    network = backbone("bert")
    seen = {fingerprint(network)}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.view(-1)[-1] += 1
            seen.add(fingerprint(network))
    assert len(seen) == 1 + len(list(network.parameters()))


CODE = "from pathlib import Path\nPath({marker!r}).write_text('ran')\n" + (
    "from transformers import BertConfig, BertModel, BertTokenizerFast\n"
    "class OwnConfig(BertConfig):\n    model_type = 'own'\n"
    "class OwnModel(BertModel):\n    config_class = OwnConfig\n"
)


def with_code(folder: Path, model_type: str) -> Path:
    """Gives a model's folder code of its own, which leaves a mark where it runs."""
    marker = folder.parent / "ran"
    (folder / "own.py").write_text(CODE.format(marker=str(marker)))
    mapping = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}
    configure(folder, model_type=model_type, auto_map=mapping)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": ["own.X", None]}}))
    return marker


@pytest.mark.parametrize("model_type", ["bert", "own"])
def test_code_in_a_models_folder_does_not_run_unless_it_is_asked_for(
    folder: Path, model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = with_code(folder, model_type)
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    if model_type == "own":
        with pytest.raises(ModelError):
            load_model(str(folder), labels=LABELS)
    else:
        load_model(str(folder), labels=LABELS)
    assert not marker.exists()


def test_code_of_a_model_does_not_run_where_only_its_shape_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformers has this configuration, but no model to it, so that it would ask whether the folder's own may run."""
    marker = tmp_path / "ran"
    (tmp_path / "own.py").write_text(CODE.format(marker=str(marker)))
    config = {"model_type": "align_text_model", "auto_map": {"AutoModel": "own.OwnModel"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(ModelError):
        meta_backbone(model_config(str(tmp_path)))
    assert not marker.exists()


@pytest.mark.parametrize("model_type", ["bert", "gemma2", "gpt_oss", "mistral", "modernbert", "qwen2", "qwen3"])
@pytest.mark.parametrize(("key", "most"), [("num_hidden_layers", LARGEST_DEPTH), ("num_labels", LARGEST_LABELS)])
def test_numbers_without_bound_are_refused_before_anything_is_made_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str, key: str, most: int
) -> None:
    """Some classes list every layer, or every label, in their constructors: those may not be reached."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, key: most + 1}))
    monkeypatch.setattr(T.AutoConfig, "from_pretrained", lambda *_, **__: pytest.fail("constructed"))
    with pytest.raises(ModelError, match=f"{key} = {most + 1}; expected at most {most}"):
        model_config(str(tmp_path))


@pytest.mark.parametrize(
    "values",
    [
        {"encoder_layers": LARGEST_DEPTH + 1},
        {"n_layer": LARGEST_DEPTH + 1},
        {"depths": [2, LARGEST_DEPTH + 1]},
        {"text_config": {"num_layers": LARGEST_DEPTH + 1}},
        {"parts": [{"num_blocks": LARGEST_DEPTH + 1}]},
        {"kv_lora_rank": 10**9},
    ],
    ids=str,
)
def test_bounds_hold_for_every_name_and_place_of_a_number(tmp_path: Path, values: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"} | values))
    with pytest.raises(ModelError, match="expected at most"):
        model_config(str(tmp_path))


@pytest.mark.parametrize("model_type", ["bert", "gemma3n_text", "llama", "t5"])
def test_the_usual_sizes_of_a_model_are_within_bounds(tmp_path: Path, model_type: str) -> None:
    T.AutoConfig.for_model(model_type).save_pretrained(tmp_path)
    assert model_config(str(tmp_path)).model_type == model_type


def test_a_model_with_an_adapter_beside_it_is_refused(folder: Path, tmp_path: Path) -> None:
    """Transformers loads the base model that the adapter names, whatever weights lie in the folder itself."""
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    change(other, lambda w: {k: v + 1 for k, v in w.items()})
    model = load_model(str(other), labels=LABELS)
    save_adapter(folder, model, random_adapter(model.layout, 2))
    with pytest.raises(ModelError, match=r"adapter_config\.json beside it"):
        load_model(str(folder), labels=LABELS)


def permute(folder: Path) -> None:
    values = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = values["model"]["vocab"]
    vocabulary["w1"], vocabulary["w2"] = vocabulary["w2"], vocabulary["w1"]
    (folder / "tokenizer.json").write_text(json.dumps(values))


OTHERS: dict[str, Callable[[Path], None]] = {
    "eps": lambda folder: configure(folder, layer_norm_eps=1e-3),
    "activation": lambda folder: configure(folder, hidden_act="relu"),
    "tokenizer": permute,
}


@pytest.mark.parametrize("edit", OTHERS.values(), ids=OTHERS)
def test_a_model_of_the_same_weights_that_computes_otherwise_has_another_fingerprint(
    edit: Callable[[Path], None], folder: Path
) -> None:
    before = load_model(str(folder), labels=LABELS).fingerprint
    edit(folder)
    assert load_model(str(folder), labels=LABELS).fingerprint != before
    configure(folder, transformers_version="5.0.0", architectures=["BertForMaskedLM"], use_cache=False)
    after = load_model(str(folder), labels=LABELS).fingerprint
    configure(folder, transformers_version="5.1.0", architectures=["BertModel"], use_cache=True)
    assert load_model(str(folder), labels=LABELS).fingerprint == after
