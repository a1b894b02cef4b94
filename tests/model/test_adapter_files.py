"""Adapter folders say what is understood, or are refused in one line: each value of each file, of odd types and out of bounds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.numpy import load_file, save_file

from lora_a2.errors import LoraA2Error, RunError
from lora_a2.model.peft_io import save_adapter
from lora_a2.model.pretrained import load_model
from lora_a2.runs.predict import load_predictor
from lora_a2.system.files import seal
from tiny import LABELS, random_adapter

CONFIG, CLASSIFIER, TENSORS, HEAD = (
    "adapter_config.json",
    "classifier.json",
    "adapter_model.safetensors",
    "head.safetensors",
)
ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    1.5,
    10**30,
    float("nan"),
    float("inf"),
    "",
    "x",
    "two\nlines",
    "\ud800",
    [],
    [1],
    {},
    {"a": [1]},
    [[["x"]]],
]


@pytest.fixture(scope="session")
def original(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    model = load_model(str(model_folder), labels=LABELS)
    save_adapter(folder, model, random_adapter(model.layout, 2))
    return folder


@pytest.fixture
def adapter(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "adapter"))


def set_value(folder: Path, file: str, key: str, value: Any) -> None:
    values = json.loads((folder / file).read_text())
    values[key] = value
    (folder / file).write_text(json.dumps(values))
    seal(folder)


def keys(file: str) -> list[str]:
    return {
        CONFIG: ["base_model_name_or_path", "r", "lora_alpha", "target_modules", "fan_in_fan_out", "peft_type"],
        CLASSIFIER: ["label_names", "pooling", "max_length", "model_fingerprint"],
    }[file]


def cases() -> list[tuple[str, str, Any]]:
    return [(file, key, value) for file in (CONFIG, CLASSIFIER) for key in keys(file) for value in ODD]


@pytest.mark.parametrize(("file", "key", "value"), cases())
def test_odd_values_are_refused_in_one_line(
    adapter: Path, file: str, key: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = json.loads((adapter / file).read_text()).get(key)
    set_value(adapter, file, key, value)
    try:
        load_predictor(adapter).predict(["w1 w2"])
    except LoraA2Error as error:
        lines = str(error).splitlines()
        assert len(lines) == 1
    else:
        harmless = {"lora_alpha": [1.5], "fan_in_fan_out": [False], "max_length": []}
        assert value == before or any(value is v or value == v for v in harmless.get(key, []))


OPTIONS = {
    "use_rslora": True,
    "use_dora": True,
    "rank_pattern": {"query": 4},
    "alpha_pattern": {"query": 4},
    "modules_to_save": ["classifier"],
    "bias": "all",
    "layers_to_transform": [0],
    "layer_replication": [[0, 1]],
    "init_lora_weights": "pissa",
    "trainable_token_indices": [1],
    "exclude_modules": ["query"],
    "something_of_next_year": True,
    "lora_bias": True,
}


@pytest.mark.parametrize(("key", "value"), OPTIONS.items(), ids=OPTIONS)
def test_options_that_change_the_model_are_refused_by_name(adapter: Path, key: str, value: Any) -> None:
    set_value(adapter, CONFIG, key, value)
    with pytest.raises(RunError, match=key):
        load_predictor(adapter)


@pytest.mark.parametrize("key", ["use_rslora", "rank_pattern", "bias", "modules_to_save", "lora_dropout"])
def test_options_at_their_defaults_change_nothing(adapter: Path, key: str) -> None:
    texts = ["w1 w2 w3", "w4"]
    before = load_predictor(adapter).predict(texts)
    usual = {"use_rslora": False, "rank_pattern": {}, "bias": "none", "modules_to_save": None, "lora_dropout": 0.1}
    set_value(adapter, CONFIG, key, usual[key])
    np.testing.assert_array_equal(load_predictor(adapter).predict(texts), before)


def edit(file: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        save_file(change(load_file(folder / file)), folder / file)
        seal(folder)

    return apply


def first(tensors: dict[str, Any]) -> str:
    return sorted(tensors)[0]


def retyped(file: str, kind: torch.dtype) -> Callable[[Path], None]:
    """Types of torch, some of which NumPy does not have."""

    def apply(folder: Path) -> None:
        tensors = {name: value.to(kind) for name, value in safetensors.torch.load_file(folder / file).items()}
        safetensors.torch.save_file(tensors, folder / file)
        seal(folder)

    return apply


def poisoned(value: float) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def change(tensors: dict[str, Any]) -> dict[str, Any]:
        tensors[first(tensors)].flat[0] = value
        return tensors

    return change


TENSOR_EDITS: dict[str, Callable[[Path], None]] = {
    "nan": edit(TENSORS, poisoned(float("nan"))),
    "inf": edit(TENSORS, poisoned(float("inf"))),
    "nan in the head": edit(HEAD, poisoned(float("nan"))),
    "one missing": edit(TENSORS, lambda t: {k: v for k, v in t.items() if k != first(t)}),
    "one more": edit(TENSORS, lambda t: {**t, "base_model.model.x.lora_A.weight": np.zeros((2, 2), np.float32)}),
    "other rank": edit(TENSORS, lambda t: {k: np.concatenate([v, v]) if "lora_A" in k else v for k, v in t.items()}),
    "half precision": edit(TENSORS, lambda t: {k: v.astype(np.float16) for k, v in t.items()}),
    **{
        f"{kind} in {file}": retyped(file, kind)
        for kind in (torch.bfloat16, torch.float8_e4m3fn, torch.int32, torch.bool)
        for file in (TENSORS, HEAD)
    },
    "three dimensions": edit(TENSORS, lambda t: {k: v[None] for k, v in t.items()}),
    "head of other labels": edit(HEAD, lambda t: {k: v[:2] for k, v in t.items()}),
    "head with more": edit(HEAD, lambda t: {**t, "scale": np.ones(1, np.float32)}),
    "no safetensors": lambda folder: (folder / TENSORS).write_bytes(b"\0" * 20) and seal(folder),
    "deep JSON": lambda folder: (folder / CONFIG).write_text("[" * 100_000) and seal(folder),
    "no JSON": lambda folder: (folder / CLASSIFIER).write_bytes(b"\xff\xfe{") and seal(folder),
}


@pytest.mark.parametrize("damage", TENSOR_EDITS.values(), ids=TENSOR_EDITS)
def test_tensors_that_do_not_fit_are_refused_in_one_line(adapter: Path, damage: Callable[[Path], None]) -> None:
    damage(adapter)
    with pytest.raises(RunError) as caught:
        load_predictor(adapter).predict(["w1"])
    assert "\n" not in str(caught.value)


def test_other_weights_under_the_adapter_are_refused(adapter: Path, model_folder: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(model_folder, tmp_path / "model"))
    weights = load_file(other / "model.safetensors")
    weights["embeddings.LayerNorm.bias"][0] += 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    set_value(adapter, CONFIG, "base_model_name_or_path", str(other))
    with pytest.raises(RunError, match=r"are not those that .* was trained on"):
        load_predictor(adapter)
