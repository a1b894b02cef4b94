"""Adapters in PEFT's format, with what PEFT has no place for (head, labels, pooling) in files beside it.

adapter_config.json, adapter_model.safetensors   as PEFT reads them, for the backbone that `AutoModel` gives
head.safetensors                                 weight (C, H), bias (C,)
classifier.json                                  label names, pooling, maximal length, fingerprint of the base model
base.safetensors                                 how far base weights moved, for methods that move them; not PEFT's
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
from lora_a2.files import write_atomic
from lora_a2.model.adapter_schema import (
    PREFIX,
    adapter_config,
    check_values,
    classifier_config,
    factors_of,
    head_of,
)
from lora_a2.model.pretrained import Model
from lora_a2.types import Adapter, Base, FloatArray

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
    fingerprint: str


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
        tensors[f"{PREFIX}{name}.lora_A.weight"] = np.ascontiguousarray(f.A)
        tensors[f"{PREFIX}{name}.lora_B.weight"] = np.ascontiguousarray(f.B)
    classifier = {
        "label_names": model.label_names,
        "pooling": model.classifier.pooling,
        "max_length": model.max_length,
        "model_fingerprint": model.fingerprint,
    }
    write_atomic(folder / "adapter_model.safetensors", save(tensors, metadata={"format": "pt"}))
    write_atomic(folder / "head.safetensors", save(_head(model, adapter), metadata={"format": "pt"}))
    if base:
        weights = {name: np.ascontiguousarray(value) for name, value in base.items()}
        write_atomic(folder / _BASE, save(weights, metadata={"format": "pt"}))
    write_atomic(folder / "classifier.json", (json.dumps(classifier, indent=2) + "\n").encode())
    write_atomic(folder / "adapter_config.json", (json.dumps(values, indent=2, sort_keys=True) + "\n").encode())


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
    try:
        config = adapter_config(json.loads((folder / "adapter_config.json").read_bytes()))
        classifier = classifier_config(json.loads((folder / "classifier.json").read_bytes()))
        factors = factors_of(load_file(folder / "adapter_model.safetensors"), config)
        base = load_file(folder / _BASE) if (folder / _BASE).exists() else {}
        check_values(base, _BASE)
        return SavedAdapter(
            model=config.model,
            adapter=Adapter(factors, config.lora_alpha),
            head=head_of(load_file(folder / "head.safetensors"), len(classifier.label_names)),
            label_names=classifier.label_names,
            pooling=classifier.pooling,
            max_length=classifier.max_length,
            base=base,
            fingerprint=classifier.fingerprint,
        )
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise RunError(f"{folder} is not a complete adapter folder: {error}.") from error
