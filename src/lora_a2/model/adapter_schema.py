"""What an adapter folder may say: each value checked, and whatever would change the model and is not honoured refused.

PEFT adds options with every release. One that is at PEFT's default changes nothing and is passed over; any other is refused by
name, since going on without it would be another model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from safetensors import safe_open

from lora_a2.core.types import Factors, FloatArray
from lora_a2.engine.packing import Pooling

PREFIX = "base_model.model."
LARGEST_RANK = 65535
LARGEST_LENGTH = 1 << 20

NATIVE_TASK = "SEQ_CLS"
"""The task type of an adapter for a whole classifier, whose head lies beside the factors."""
_HONOURED = frozenset(
    {"base_model_name_or_path", "r", "lora_alpha", "target_modules", "fan_in_fan_out", "peft_type", "task_type"}
)
_HARMLESS = frozenset({"auto_mapping", "inference_mode", "lora_dropout", "peft_version", "revision"})
"""These change nothing in a trained model."""


@dataclass(frozen=True)
class AdapterConfig:
    """What `adapter_config.json` says: the base model's name, the rank, lora_alpha, the names of the adapted layers, whether
    these keep their weights as (d_in, d_out), and, of a whole classifier, the names of the parts that make up its head."""

    model: str
    rank: int
    lora_alpha: float
    modules: frozenset[str]
    fan_in_fan_out: bool
    head: tuple[str, ...] = ()


@dataclass(frozen=True)
class ClassifierConfig:
    """What `classifier.json` says; `native`: the head is that of the model's architecture, and lies among its weights."""

    label_names: tuple[str, ...]
    pooling: str
    max_length: int
    fingerprint: str
    native: bool = False


def adapter_config(values: object) -> AdapterConfig:
    """Checks the content of `adapter_config.json`.

    Raises:
        ValueError: a value is missing, of another type, out of bounds, or asks for something that is not known here.
    """
    found = _object(values, "adapter_config.json")
    from peft import LoraConfig

    usual = asdict(LoraConfig())
    native = found.get("task_type") == NATIVE_TASK
    for key in sorted(found.keys() - _HONOURED - _HARMLESS - ({"modules_to_save"} if native else set())):
        if key not in usual:
            raise ValueError(f"adapter_config.json has {key}, which this release does not know")
        if not _alike(found[key], usual[key]):
            raise ValueError(
                f"adapter_config.json has {key} = {str(found[key])[:60]}; only {usual[key]!r} is supported"
            )
    if found.get("peft_type") != "LORA":
        raise ValueError(f"adapter_config.json has peft_type = {str(found.get('peft_type'))[:60]}; expected LORA")
    modules = _names(found, "target_modules")
    return AdapterConfig(
        model=_text(found, "base_model_name_or_path"),
        rank=_whole(found, "r", 1, LARGEST_RANK),
        lora_alpha=_positive(found, "lora_alpha"),
        modules=frozenset(modules),
        fan_in_fan_out=_flag(found, "fan_in_fan_out"),
        head=tuple(_names(found, "modules_to_save")) if native else (),
    )


def classifier_config(values: object) -> ClassifierConfig:
    """Checks the content of `classifier.json`.

    Raises:
        ValueError: a value is missing, unknown, of another type, or out of bounds.
    """
    found = _object(values, "classifier.json")
    known = {"label_names", "pooling", "max_length", "model_fingerprint", "head"}
    if strange := sorted(found.keys() - known):
        raise ValueError(f"classifier.json has {strange[0]}, which this release does not know")
    labels = found.get("label_names")
    if not isinstance(labels, list) or not all(isinstance(name, str) for name in labels):
        raise ValueError("classifier.json needs label_names, a list of texts")
    if len(set(labels)) < max(1, len(labels)):
        raise ValueError("classifier.json needs label_names that differ")
    if found.get("pooling") not in get_args(Pooling):
        raise ValueError(f"classifier.json needs a pooling of {', '.join(get_args(Pooling))}")
    if found.get("head", "native") != "native":
        raise ValueError(f"classifier.json has head = {str(found['head'])[:60]}; only native is known")
    return ClassifierConfig(
        tuple(labels),
        found["pooling"],
        _whole(found, "max_length", 1, LARGEST_LENGTH),
        _digest(found, "model_fingerprint"),
        "head" in found,
    )


def read_tensors(path: Path) -> dict[str, FloatArray]:
    """The tensors of a file, each float32 and finite.

    Raises:
        OSError, SafetensorError: the file is missing or damaged.
        ValueError: a tensor is of another type, which NumPy may not even have, or has values that are not finite.
    """
    tensors: dict[str, FloatArray] = {}
    with safe_open(path, "numpy") as file:
        for name in file.keys():  # noqa: SIM118 (no mapping)
            if (kind := file.get_slice(name).get_dtype()) != "F32":
                raise ValueError(f"{path.name} has {name} in {kind}; expected F32, which is float32")
            tensors[name] = file.get_tensor(name)
            if not np.isfinite(tensors[name]).all():
                raise ValueError(f"{path.name} has values in {name} that are not finite")
    return tensors


def factors_of(tensors: Mapping[str, np.ndarray], config: AdapterConfig) -> dict[str, Factors]:
    """The factors in `adapter_model.safetensors`, module by module.

    Raises:
        ValueError: they are not those that the configuration names, or not of its rank.
    """
    wanted = {f"{PREFIX}{name}.lora_{x}.weight" for name in config.modules for x in "AB"}
    if wrong := sorted(wanted ^ tensors.keys()):
        raise ValueError(f"adapter_model.safetensors and adapter_config.json do not agree on {wrong[0]}")
    factors = {}
    for name in config.modules:
        a, b = (tensors[f"{PREFIX}{name}.lora_{x}.weight"] for x in "AB")
        if a.ndim != 2 or b.ndim != 2 or (a.shape[0], b.shape[1]) != (config.rank, config.rank):
            raise ValueError(f"the factors of {name} are {a.shape} and {b.shape}; expected rank {config.rank}")
        factors[name] = Factors(a, b)
    return {name: factors[name] for name in _in_order(tensors)}


def native_parts(
    tensors: Mapping[str, np.ndarray], config: AdapterConfig
) -> tuple[dict[str, Factors], dict[str, FloatArray]]:
    """The factors of an adapter for a whole classifier, by the names that their modules have in the backbone, and the head's weights.

    Raises:
        ValueError: there are weights that the configuration does not name, or modules outside of one backbone.
    """
    inside = tuple(f"{PREFIX}{name}." for name in config.head)
    head = {key.removeprefix(PREFIX): value for key, value in tensors.items() if key.startswith(inside)}
    factors = factors_of({key: value for key, value in tensors.items() if not key.startswith(inside)}, config)
    backbones = {name.partition(".")[0] for name in factors}
    if len(backbones) != 1 or not head or not all("." in name for name in factors):
        raise ValueError("adapter_config.json needs target_modules in one backbone, and a head")
    return {name.partition(".")[2]: value for name, value in factors.items()}, head


def head_of(tensors: Mapping[str, np.ndarray], labels: int) -> dict[str, FloatArray]:
    """`weight` (C, H) and `bias` (C,) of `head.safetensors`.

    Raises:
        ValueError: other tensors, or other shapes.
    """
    if tensors.keys() != {"weight", "bias"}:
        raise ValueError(f"head.safetensors has {', '.join(sorted(tensors)) or 'nothing'}; expected weight and bias")
    weight, bias = tensors["weight"], tensors["bias"]
    if weight.ndim != 2 or weight.shape[0] != labels or bias.shape != (labels,):
        raise ValueError(f"the head is {weight.shape} and {bias.shape}; expected {labels} labels")
    return {"weight": weight, "bias": bias}


def _in_order(tensors: Mapping[str, np.ndarray]) -> list[str]:
    return [
        key.removeprefix(PREFIX).removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")
    ]


def _alike(found: object, usual: object) -> bool:
    """Whether a value of a JSON file is PEFT's default; nothing at all, and an empty collection, are the same."""
    empty: tuple[object, ...] = (None, {}, [], set())
    return (type(found) is type(usual) and found == usual) or (found in empty and usual in empty)


def _object(values: object, file: str) -> Mapping[str, Any]:
    if not isinstance(values, dict):
        raise ValueError(f"{file} is no JSON object")
    return values


def _text(values: Mapping[str, Any], key: str) -> str:
    value = values.get(key)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key} is {str(value)[:60]}; expected a text")
    return value


def _names(values: Mapping[str, Any], key: str) -> list[str]:
    found = values.get(key)
    if not isinstance(found, list) or not found or not all(isinstance(name, str) for name in found):
        raise ValueError(f"adapter_config.json needs {key}, a list of names")
    return found


def _digest(values: Mapping[str, Any], key: str) -> str:
    value = values.get(key)
    if not isinstance(value, str) or re.fullmatch("[0-9a-f]{64}", value) is None:
        raise ValueError(f"{key} is {str(value)[:60]!r}; expected 64 hex digits")
    return value


def _flag(values: Mapping[str, Any], key: str) -> bool:
    value = values.get(key, False)
    if not isinstance(value, bool):
        raise ValueError(f"{key} is {str(value)[:60]}; expected true or false")
    return value


def _whole(values: Mapping[str, Any], key: str, least: int, most: int) -> int:
    value = values.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{key} is {str(value)[:60]}; expected a whole number from {least} to {most}")
    return value


def _positive(values: Mapping[str, Any], key: str) -> float:
    value = values.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e9 or not math.isfinite(value):
        raise ValueError(f"{key} is {str(value)[:60]}; expected a number above 0")
    return float(value)
