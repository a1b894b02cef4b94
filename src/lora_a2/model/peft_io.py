"""Adapters in PEFT's format, with what PEFT has no place for (head, labels, pooling) in files beside it.

adapter_config.json, adapter_model.safetensors   as PEFT reads them, for the backbone that `AutoModel` gives; with a native
                                                 head that too, for what `AutoModelForSequenceClassification` gives
head.safetensors                                 weight (C, H), bias (C,) of a linear head
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
    NATIVE_TASK,
    PREFIX,
    ClassifierConfig,
    adapter_config,
    classifier_config,
    factors_of,
    head_of,
    native_parts,
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
        head: `weight` (C, H) and `bias` (C,), or all weights of a native head by name.
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
    native = model.native
    prefix = f"{native.prefix}." if native else ""
    modules = sorted(f"{prefix}{m.name}" for m in model.layout.modules)
    config = lora_config(model, adapter, modules, NATIVE_TASK if native else "FEATURE_EXTRACTION")
    tensors = {}
    for name, f in adapter.pair.factors.items():
        tensors[f"{PREFIX}{prefix}{name}.lora_A.weight"] = np.ascontiguousarray(f.A)
        tensors[f"{PREFIX}{prefix}{name}.lora_B.weight"] = np.ascontiguousarray(f.B)
    if native:
        config["modules_to_save"] = sorted(native.modules)
        tensors |= {f"{PREFIX}{name}": value for name, value in native.tensors(last_layer(model, adapter)).items()}
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
    """Labels, and a linear head, as files; `fingerprint` is that of the backbone which they belong to."""
    classifier: dict[str, object] = {
        "label_names": model.label_names,
        "pooling": model.network.objective.pooling,
        "max_length": model.max_length,
        "model_fingerprint": fingerprint,
    }
    if model.native is not None:
        return {CLASSIFIER: json_bytes({"head": "native", **classifier})}
    return {HEAD: save(last_layer(model, adapter), metadata={"format": "pt"}), CLASSIFIER: json_bytes(classifier)}


def last_layer(model: Model, adapter: Adapter) -> dict[str, FloatArray]:
    """The last layer of the head: the adapter's, if it was trained."""
    found = adapter.head or {name: value.cpu().numpy() for name, value in model.network.objective.head.items()}
    return {name: np.ascontiguousarray(value) for name, value in found.items()}


def json_bytes(values: object) -> bytes:
    """Indented, and with an end of line."""
    return (json.dumps(values, indent=2) + "\n").encode()


def read_adapter(folder: Path) -> SavedAdapter:
    """Reads what `save_adapter` wrote.

    Raises:
        RunError: the folder is missing or damaged, or asks for something that is not known here.
    """
    checked(folder, "adapter", {CONFIG, TENSORS, CLASSIFIER})
    try:
        config = adapter_config(json.loads((folder / CONFIG).read_bytes()))
        tensors = read_tensors(folder / TENSORS)
        classifier = read_labels(folder)
        if bool(config.head) is not classifier.native:
            raise ValueError(f"{CONFIG} and {CLASSIFIER} do not agree on the head")
        if config.head:
            factors, head = native_parts(tensors, config)
        else:
            factors, head = factors_of(tensors, config), read_head(folder, classifier)
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise RunError(f"{folder} is not a complete adapter folder: {one_line(error)}.") from error
    return SavedAdapter(config.model, Adapter(factors, config.lora_alpha), config.fan_in_fan_out, head, classifier)


def read_labels(folder: Path) -> ClassifierConfig:
    """What the classifier.json of a folder says.

    Raises:
        OSError, ValueError, RecursionError: it is missing or damaged.
    """
    return classifier_config(json.loads((folder / CLASSIFIER).read_bytes()))


def read_head(folder: Path, classifier: ClassifierConfig) -> dict[str, FloatArray]:
    """The linear head of a folder, which its sums have to list.

    Raises:
        OSError, ValueError, SafetensorError: it is missing or damaged.
        RunError: it is not listed.
    """
    checked(folder, "adapter" if (folder / CONFIG).exists() else "model", {HEAD})
    return head_of(read_tensors(folder / HEAD), len(classifier.label_names))


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
