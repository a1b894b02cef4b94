"""Adapters in PEFT's format, with what PEFT has no place for (head, labels, pooling) in files beside it.

adapter_config.json, adapter_model.safetensors   as PEFT reads them, for the backbone that `AutoModel` gives
head.safetensors                                 weight (C, H), bias (C,)
classifier.json                                  label names, pooling, maximal length
base.safetensors                                 how far base weights moved, for methods that move them; not PEFT's
SHA256SUMS                                       the digests of all of them
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from lora_a2.errors import RunError
from lora_a2.files import SUMS, check, write_all
from lora_a2.model.pretrained import Model
from lora_a2.types import Adapter, Base, Factors, FloatArray

_PREFIX = "base_model.model."
_BASE = "base.safetensors"


@dataclass(frozen=True)
class SavedAdapter:
    """What an adapter folder holds: enough to build the fine-tuned classifier again."""

    model: str
    adapter: Adapter
    head: dict[str, FloatArray]
    label_names: tuple[str, ...]
    pooling: str
    max_length: int
    base: dict[str, FloatArray]


def save_adapter(folder: str | Path, model: Model, adapter: Adapter, base: Base | None = None) -> None:
    """Writes an adapter folder; the same adapter (and moved base weights) give the same bytes."""
    from peft import LoraConfig, TaskType

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = [m.name for m in model.layout.modules]
    config = LoraConfig(
        task_type=TaskType.FEATURE_EXTRACTION,
        base_model_name_or_path=model.name,
        r=adapter.rank,
        lora_alpha=adapter.lora_alpha,  # type: ignore[arg-type]
        target_modules=names,
        inference_mode=True,
        fan_in_fan_out=any(layer.conv1d for layer in model.classifier.layers.values()),
    )
    values = {k: sorted(v) if isinstance(v, set) else v for k, v in _plain(config).items()}
    tensors = {}
    for name, f in adapter.factors.items():
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = np.ascontiguousarray(f.A)
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = np.ascontiguousarray(f.B)
    classifier = {
        "label_names": model.label_names,
        "pooling": model.classifier.pooling,
        "max_length": model.max_length,
    }
    weights = {name: np.ascontiguousarray(value) for name, value in (base or {}).items()}
    files = {
        "adapter_model.safetensors": save(tensors, metadata={"format": "pt"}),
        "head.safetensors": save(_head(model, adapter), metadata={"format": "pt"}),
        **({_BASE: save(weights, metadata={"format": "pt"})} if weights else {}),
        "classifier.json": (json.dumps(classifier, indent=2) + "\n").encode(),
        "adapter_config.json": (json.dumps(values, indent=2, sort_keys=True) + "\n").encode(),
    }
    write_all(folder, files)


def _plain(config: Any) -> dict[str, Any]:
    values: dict[str, Any] = config.to_dict()
    return values


def _head(model: Model, adapter: Adapter) -> dict[str, FloatArray]:
    if adapter.head:
        return {name: np.ascontiguousarray(value) for name, value in adapter.head.items()}
    return {name: value.cpu().numpy() for name, value in model.classifier.head.items()}


def read_adapter(folder: Path) -> SavedAdapter:
    """Reads what `save_adapter` wrote.

    Raises:
        RunError: the folder is missing or damaged.
    """
    there = _checked(folder)
    try:
        config = json.loads((folder / "adapter_config.json").read_text())
        classifier = json.loads((folder / "classifier.json").read_text())
        tensors = load_file(folder / "adapter_model.safetensors")
        head = load_file(folder / "head.safetensors")
        names = [k.removeprefix(_PREFIX).removesuffix(".lora_A.weight") for k in tensors if k.endswith("lora_A.weight")]
        factors = {
            name: Factors(tensors[f"{_PREFIX}{name}.lora_A.weight"], tensors[f"{_PREFIX}{name}.lora_B.weight"])
            for name in names
        }
        return SavedAdapter(
            model=config["base_model_name_or_path"],
            adapter=Adapter(factors, float(config["lora_alpha"])),
            head={"weight": head["weight"], "bias": head["bias"]},
            label_names=tuple(classifier["label_names"]),
            pooling=classifier["pooling"],
            max_length=int(classifier["max_length"]),
            base=load_file(folder / _BASE) if _BASE in there else {},
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise RunError(f"{folder} is not a complete adapter folder: {error}.") from error


def _checked(folder: Path) -> frozenset[str]:
    """The files of an adapter folder, each as it was written."""
    try:
        there = check(folder)
    except RunError as error:
        raise RunError(f"{folder} is not a complete adapter folder: {error}") from error
    if missing := {"adapter_config.json", "classifier.json", "adapter_model.safetensors", "head.safetensors"} - there:
        raise RunError(f"{folder} is not a complete adapter folder: {SUMS} does not list {min(missing)}.")
    return there
