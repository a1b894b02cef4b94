"""What `lora-a2 cost` needs of a model: its linear layers and how many weights it has.

Those of models known by name stand in shapes.json, as PyTorch takes seconds to be imported; `python tests/model/test_shapes.py`
writes it anew from the models themselves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from lora_a2.core.types import ModuleShape
from lora_a2.engine.matching import Layers
from lora_a2.model.names import BUILT_IN, canonical

SHAPES_FILE = "shapes.json"


@dataclass(frozen=True)
class ModelShape:
    """A model without weights: its `layers`, and `full_parameters`, the weights that full fine-tuning sends."""

    layers: Layers
    full_parameters: int


def model_shape(name: str) -> ModelShape:
    """The shape of the model called `name`; of one that is not known by name its configuration is read, and PyTorch imported.

    Raises:
        ModelError: there is no such model, or nothing can be built from its configuration.
    """
    if canonical(name) in BUILT_IN:
        return _unpacked(_known()[canonical(name)])
    from lora_a2.engine.targets import layers_of
    from lora_a2.model.catalog import full_parameters, meta_backbone, model_config

    config = model_config(name)
    return ModelShape(layers_of(meta_backbone(config)), full_parameters(config))


def packed(shape: ModelShape) -> dict[str, Any]:
    """A row of shapes.json: name and number of the blocks, and (d_out, d_in) of each linear layer in one of them.

    Raises:
        ValueError: the blocks are not all alike, or there are linear layers outside of them.
    """
    (blocks,) = shape.layers.blocks
    each: dict[str, dict[str, tuple[int, int]]] = {}
    for name, module in shape.layers.linear.items():
        if not name.startswith(f"{blocks}."):
            raise ValueError(f"{name} is in no block")
        number, _, end = name.removeprefix(f"{blocks}.").partition(".")
        each.setdefault(number, {})[end] = (module.d_out, module.d_in)
    first = next(iter(each.values()))
    if any(list(block.items()) != list(first.items()) for block in each.values()):
        raise ValueError(f"{blocks} are not all alike")
    return {"full_parameters": shape.full_parameters, "blocks": blocks, "number": len(each), "linear": first}


def _unpacked(row: Mapping[str, Any]) -> ModelShape:
    linear = {}
    for number in range(row["number"]):
        for end, (d_out, d_in) in row["linear"].items():
            name = f"{row['blocks']}.{number}.{end}"
            linear[name] = ModuleShape(name, d_out=d_out, d_in=d_in)
    return ModelShape(Layers(linear, [row["blocks"]]), row["full_parameters"])


@cache
def _known() -> Mapping[str, Any]:
    found: dict[str, Any] = json.loads((files("lora_a2.model") / SHAPES_FILE).read_text("utf-8"))
    return found
