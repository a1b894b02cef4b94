"""How a model's authors make a sentence's vector of its tokens' vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from lora_a2.engine.packing import Pooling
from lora_a2.errors import ModelError
from lora_a2.model.checkpoint import find_file

_MODES: dict[str, Pooling] = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
"""sentence-transformers' names of the poolings that are known here."""
_FLAG = "pooling_mode_"
"""Before version 5.4 each mode was a flag of its own, such as `pooling_mode_cls_token`."""
_OLD = {"cls_token": "cls", "mean_tokens": "mean", "lasttoken": "lasttoken"}


def usual_pooling(where: str, config: PretrainedConfig) -> Pooling:
    """What a sentence-transformers model says; else the last token of a decoder, and the mean of an encoder.

    `where` is a folder or a hub id.

    Raises:
        ModelError: the model asks for something that is not known here.
    """
    modules = find_file(where, "modules.json")
    if modules is not None:
        return _stated(where, modules)
    alone = find_file(where, "1_Pooling/config.json")
    if alone is not None:
        return _pooling(alone)
    return kind_pooling(config)


def kind_pooling(config: PretrainedConfig) -> Pooling:
    """The last token of a decoder, and the mean of an encoder."""
    kind, named = config.model_type, " ".join(getattr(config, "architectures", None) or [])
    causal = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return "last" if causal or getattr(config, "is_decoder", False) or "CausalLM" in named else "mean"


def _stated(where: str, path: Path) -> Pooling:
    """The pooling among the modules of a sentence-transformers model. What normalises the vector changes no label."""
    found = []
    for module in _read(path, list):
        if not isinstance(module, dict) or not isinstance(module.get("type"), str):
            raise ModelError(f"{path} is damaged: each module needs a type.")
        kind = module["type"].rpartition(".")[2]
        if kind == "Pooling":
            config = find_file(where, f"{module.get('path', '')}/config.json")
            if config is None:
                raise ModelError(f"{path} names a pooling in {module.get('path')!r}, which has no config.json.")
            found.append(_pooling(config))
        elif kind not in ("Transformer", "Normalize", "Dropout"):
            raise ModelError(
                f"{path} has a module of type {module['type']}, which is not known here: give --pooling mean, cls or last to "
                "do without it."
            )
    if len(found) != 1:
        raise ModelError(f"{path} has {len(found)} poolings; expected one. Give --pooling mean, cls or last.")
    return found[0]


def _pooling(path: Path) -> Pooling:
    values = _read(path, dict)
    if "pooling_mode" in values:
        stated = values["pooling_mode"]
        modes = (
            [stated] if isinstance(stated, str) else list(stated) if isinstance(stated, list | tuple) else [str(stated)]
        )
    else:
        flags = [key.removeprefix(_FLAG) for key, on in values.items() if key.startswith(_FLAG) and on]
        modes = [_OLD.get(flag, flag) for flag in flags]
    if len(modes) != 1 or modes[0] not in _MODES:
        raise ModelError(
            f"{path} asks for the pooling {' and '.join(map(str, modes)) or 'nothing'}; known are {', '.join(_MODES)}, one "
            "at a time. Give --pooling mean, cls or last."
        )
    return _MODES[modes[0]]


def _read(path: Path, kind: type[Any]) -> Any:
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}.") from error
    if not isinstance(values, kind):
        raise ModelError(f"{path} is damaged: expected a JSON {'list' if kind is list else 'object'}.")
    return values
