"""Adapters in PEFT's format, with what PEFT has no place for (head, labels, pooling) in files beside it.

adapter_config.json, adapter_model.safetensors   as PEFT reads them, for the backbone that `AutoModel` gives
head.safetensors                                 weight (C, H), bias (C,)
classifier.json                                  label names, pooling, maximal length, fingerprint of the base model
SHA256SUMS                                       the digests of all of them

An adapter alone is the result only if a method leaves the base weights as they are; else see `model.merged`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save

from lora_a2.core.types import Adapter, FloatArray
from lora_a2.errors import RunError
from lora_a2.model.adapter_schema import (
    PREFIX,
    ClassifierConfig,
    adapter_config,
    classifier_config,
    factors_of,
    head_of,
    read_tensors,
)
from lora_a2.model.pretrained import Model
from lora_a2.system.files import SUMS, check, write_all

CONFIG, TENSORS, HEAD, CLASSIFIER = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "head.safetensors",
    "classifier.json",
)


@dataclass(frozen=True)
class SavedAdapter:
    """What an adapter folder holds: enough to build the fine-tuned classifier again.

    Attributes:
        model: the base model's name.
        adapter: its factors.
        fan_in_fan_out: whether some layers keep their weights as (d_in, d_out), as GPT-2's do.
        head: `weight` (C, H) and `bias` (C,).
        classifier: labels, pooling, length, fingerprint of the base model.
    """

    model: str
    adapter: Adapter
    fan_in_fan_out: bool
    head: dict[str, FloatArray]
    classifier: ClassifierConfig


def save_adapter(folder: str | Path, model: Model, adapter: Adapter) -> None:
    """Writes an adapter folder; the same adapter gives the same bytes.

    Options of PEFT that are at its defaults are left out, so that releases that do not know them yet read it too.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = lora_config(model, adapter, sorted(m.name for m in model.layout.modules), "FEATURE_EXTRACTION")
    tensors = {}
    for name, f in adapter.pair.factors.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = np.ascontiguousarray(f.A)
        tensors[f"{PREFIX}{name}.lora_B.weight"] = np.ascontiguousarray(f.B)
    files = {TENSORS: save(tensors, metadata={"format": "pt"}), **classifier_files(model, adapter, model.fingerprint)}
    write_all(folder, {**files, CONFIG: json_bytes(config)})


def lora_config(model: Model, adapter: Adapter, modules: Sequence[str], task_type: str) -> dict[str, Any]:
    """The content of `adapter_config.json`."""
    return {
        "base_model_name_or_path": model.name,
        "fan_in_fan_out": any(layer.conv1d for layer in model.network.layers.values()),
        "inference_mode": True,
        "lora_alpha": int(adapter.lora_alpha) if adapter.lora_alpha == int(adapter.lora_alpha) else adapter.lora_alpha,
        "peft_type": "LORA",
        "r": adapter.rank,
        "target_modules": list(modules),
        "task_type": task_type,
    }


def classifier_files(model: Model, adapter: Adapter, fingerprint: str) -> dict[str, bytes]:
    """Head and labels, as files; `fingerprint` is that of the backbone which they belong to."""
    head = adapter.head or {name: value.cpu().numpy() for name, value in model.network.objective.head.items()}
    classifier = {
        "label_names": model.label_names,
        "pooling": model.network.objective.pooling,
        "max_length": model.max_length,
        "model_fingerprint": fingerprint,
    }
    kept = {name: np.ascontiguousarray(value) for name, value in head.items()}
    return {HEAD: save(kept, metadata={"format": "pt"}), CLASSIFIER: json_bytes(classifier)}


def json_bytes(values: object) -> bytes:
    """Indented, and with an end of line."""
    return (json.dumps(values, indent=2) + "\n").encode()


def read_adapter(folder: Path) -> SavedAdapter:
    """Reads what `save_adapter` wrote.

    Raises:
        RunError: the folder is missing or damaged, or asks for something that is not known here.
    """
    checked(folder, "adapter", {CONFIG, TENSORS, HEAD, CLASSIFIER})
    try:
        config = adapter_config(json.loads((folder / CONFIG).read_bytes()))
        head, classifier = read_classifier(folder)
        factors = factors_of(read_tensors(folder / TENSORS), config)
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise RunError(f"{folder} is not a complete adapter folder: {one_line(error)}.") from error
    return SavedAdapter(config.model, Adapter(factors, config.lora_alpha), config.fan_in_fan_out, head, classifier)


def read_classifier(folder: Path) -> tuple[dict[str, FloatArray], ClassifierConfig]:
    """Head and labels of a folder.

    Raises:
        OSError, ValueError, RecursionError, SafetensorError: they are missing or damaged.
    """
    classifier = classifier_config(json.loads((folder / CLASSIFIER).read_bytes()))
    return head_of(read_tensors(folder / HEAD), len(classifier.label_names)), classifier


def checked(folder: Path, kind: str, needed: set[str]) -> None:
    """Compares the files of a folder, an adapter's or a model's, with their digests.

    Raises:
        RunError: one is missing, or not as it was written.
    """
    try:
        there = check(folder)
    except RunError as error:
        raise RunError(f"{folder} is not a complete {kind} folder: {error}") from error
    if missing := needed - there:
        raise RunError(f"{folder} is not a complete {kind} folder: {SUMS} does not list {min(missing)}.")


def one_line(error: BaseException) -> str:
    """An error's first line."""
    return " ".join((str(error) or type(error).__name__).split("\n")[0].split()).rstrip(".")
