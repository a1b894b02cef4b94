"""The linear layers of a backbone, and those of them that get an adapter. Works on the meta device too.

Names mean what they mean in PEFT (`target_modules`), relative to the backbone that `AutoModel` gives.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers.pytorch_utils import Conv1D

from lora_a2.core.types import ModuleShape
from lora_a2.engine.matching import Layers, choose_layers


def find_target_modules(
    backbone: torch.nn.Module, target_modules: str | Sequence[str] | None = None
) -> tuple[ModuleShape, ...]:
    """The linear layers of a backbone without a head that are adapted: see `choose_layers`.

    Raises:
        ModelError: nothing matches, or an entry of a list matches nothing; the message lists what there is.
    """
    return choose_layers(layers_of(backbone), target_modules)


def layers_of(backbone: torch.nn.Module) -> Layers:
    """What of a backbone may be adapted."""
    return Layers(linear_layers(backbone), block_lists(backbone))


def linear_layers(backbone: torch.nn.Module) -> dict[str, ModuleShape]:
    """Every linear layer, by name, in the order in which the backbone registers them."""
    layers = {}
    for name, module in backbone.named_modules():
        if isinstance(module, torch.nn.Linear):
            layers[name] = ModuleShape(name, d_out=module.out_features, d_in=module.in_features)
        elif isinstance(module, Conv1D):  # GPT-2's linear layer; its weight is (d_in, d_out)
            d_in, d_out = module.weight.shape
            layers[name] = ModuleShape(name, d_out=d_out, d_in=d_in)
    return layers


def block_lists(backbone: torch.nn.Module) -> list[str]:
    """Names of the longest lists of modules; lists inside another (a block's experts) are no lists of blocks.

    An encoder and a decoder of the same depth are two such lists.
    """
    lists = {name: module for name, module in backbone.named_modules() if isinstance(module, torch.nn.ModuleList)}
    outer = {n: len(m) for n, m in lists.items() if not any(n.startswith(f"{other}.") for other in lists)}
    longest = max(outer.values(), default=0)
    return [name for name, length in outer.items() if length == longest]
