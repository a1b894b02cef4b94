"""Configurations of models by name, and models without weights."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, PretrainedConfig

from lora_a2.errors import ModelError
from lora_a2.model.hub import hub_or_cache
from lora_a2.model.names import BUILT_IN, canonical, nearest

LARGEST_DEPTH, LARGEST_LABELS, LARGEST_WIDTH = 1 << 12, 1 << 20, 1 << 26
"""Bounds of what a config.json may ask for: layers, labels, and all other whole numbers that shapes are made of."""
_DEPTHS = frozenset({"layer", "layers", "blocks", "depth", "depths"})
"""Last words of the names of numbers of layers: num_hidden_layers, n_layer, encoder_layers, …"""

_SHAPES = (
    "layer",
    "hidden",
    "size",
    "head",
    "embed",
    "position",
    "dim",
    "expert",
    "rank",
    "n_inner",
    "d_model",
    "d_ff",
)


def model_config(name: str, trust_remote_code: bool = False) -> PretrainedConfig:
    """The configuration called `name`: built in, else a local folder with a config.json, else from the model hub.

    Python in the model's folder runs only with `trust_remote_code`.

    Raises:
        ModelError: there is none, or the hub cannot be reached; the message names the nearest built-in model.
    """
    built_in = BUILT_IN.get(canonical(name))
    if built_in is not None:
        return AutoConfig.for_model(**built_in)
    if Path(name).is_dir():
        return _loaded(name, trust_remote_code=trust_remote_code)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"Model {name!r}: there is no such folder.")
    with suppress(ModelError):
        return _loaded(name, local_files_only=True, trust_remote_code=trust_remote_code)
    with hub_or_cache(name):
        return _loaded(name, trust_remote_code=trust_remote_code)


def meta_backbone(config: PretrainedConfig, pooling: bool = False) -> torch.nn.Module:
    """The model of `config` without a head, on the meta device: names and shapes, no weights, no memory.

    `pooling` keeps the pooling layer of models that have an optional one (BERT, RoBERTa).

    Raises:
        ModelError: Transformers has no such model or refuses the configuration.
    """
    options: dict[str, Any] = {}
    if not pooling and has_optional_pooling(config):
        options["add_pooling_layer"] = False
    try:
        with torch.device("meta"):
            # A class of a folder's own code, where that may run, is registered by now: nothing more has to be trusted.
            backbone: torch.nn.Module = AutoModel.from_config(config, trust_remote_code=False, **options)  # type: ignore[no-untyped-call]
    except Exception as error:  # whatever numbers that do not fit together lead to
        raise ModelError(f"Transformers cannot build a {config.model_type!r} model: {_first_line(error)}") from error
    return backbone


def full_parameters(config: PretrainedConfig) -> int:
    """Number of weights that full fine-tuning sends a client and round: the backbone with its pooling layer.

    RoBERTa-base has 124,645,632, the paper's 124.6M.
    """
    return sum(weight.numel() for weight in meta_backbone(config, pooling=True).parameters())


def has_optional_pooling(config: PretrainedConfig) -> bool:
    """Whether a model of this kind can be built without its pooling layer."""
    model_class = MODEL_MAPPING.get(type(config), None)
    return inspect.isclass(model_class) and "add_pooling_layer" in inspect.signature(model_class).parameters


def _loaded(name: str, **options: Any) -> PretrainedConfig:
    try:
        stated, _ = PretrainedConfig.get_config_dict(name, local_files_only=options.get("local_files_only", False))
        _check_bounds(name, stated)  # first: a class's constructor may list every layer, or every label
        config: PretrainedConfig = AutoConfig.from_pretrained(name, **options)
    except ModelError:
        raise
    except Exception as error:  # whatever its readers of damaged files come upon
        raise ModelError(f"Model {name!r}: no usable config.json: {_first_line(error)} {nearest(name)}") from error
    _check_bounds(name, config.to_dict())
    return config


def _check_bounds(name: str, values: Mapping[str, Any]) -> None:
    """Refuses numbers by which a model that no machine holds would be built, layer by layer.

    Raises:
        ModelError: one is too large.
    """
    for key, value in values.items():
        most = _most(str(key))
        for each in value if isinstance(value, list | tuple) else (value,):
            if isinstance(each, Mapping):
                _check_bounds(name, each)
            elif isinstance(each, int) and most is not None and each > most:
                raise ModelError(f"Model {name!r}: its config.json says {key} = {each}; expected at most {most}.")


def _most(key: str) -> int | None:
    """The bound of a number called `key`; None: it has no part in a model's size."""
    if key.rpartition("_")[2] in _DEPTHS:
        return LARGEST_DEPTH
    if key == "num_labels":
        return LARGEST_LABELS
    return LARGEST_WIDTH if any(part in key for part in _SHAPES) else None


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
