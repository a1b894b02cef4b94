"""Which layers of a backbone get an adapter, and the layout that follows from them. Works on the meta device too.

Names mean what they mean in PEFT (`target_modules`), relative to the backbone that `AutoModel` gives.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from transformers.pytorch_utils import Conv1D

from lora_a2.core.types import ModuleShape
from lora_a2.errors import ModelError

ALL_LINEAR = "all-linear"


def find_target_modules(
    backbone: torch.nn.Module, target_modules: str | Sequence[str] | None = None
) -> tuple[ModuleShape, ...]:
    """The linear layers to adapt, in the order in which the backbone registers them.

    Args:
        backbone: the model without a head.
        target_modules: None or "all-linear": every linear layer of every transformer block. A list: layers whose full
            name, or whose name's end after a dot, is one of it. Any other string: a regular expression that matches
            the full name.

    Raises:
        ModelError: nothing matches, or an entry of the list matches nothing; the message lists what there is.
    """
    linear = linear_layers(backbone)
    if target_modules is None or target_modules in (ALL_LINEAR, [ALL_LINEAR], (ALL_LINEAR,)):
        chosen = _inside_blocks(backbone, linear)
    elif isinstance(target_modules, str):
        chosen = _matching(target_modules, linear)
    else:
        chosen = _ending(target_modules, linear)
    return tuple(linear[name] for name in chosen)


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


def _inside_blocks(backbone: torch.nn.Module, linear: Mapping[str, ModuleShape]) -> list[str]:
    blocks = block_lists(backbone)
    chosen = [name for name in linear if any(name.startswith(f"{block}.") for block in blocks)]
    if not chosen:
        raise ModelError(f"No linear layers inside transformer blocks were found. {_available(linear)}")
    return chosen


def _matching(pattern: str, linear: Mapping[str, ModuleShape]) -> list[str]:
    try:
        chosen = [name for name in linear if re.fullmatch(pattern, name)]
    except re.error as error:
        raise ModelError(f"target_modules {pattern!r} is not a regular expression: {error}.") from None
    if not chosen:
        raise ModelError(f"target_modules {pattern!r} matches the full name of no linear layer. {_available(linear)}")
    return chosen


def _ending(names: Sequence[str], linear: Mapping[str, ModuleShape]) -> list[str]:
    # Stricter than PEFT, which forgives entries without a match: a misspelt one would silently train less.
    idle = [end for end in names if not any(_ends(name, end) for name in linear)]
    if idle or not names:
        what = ", ".join(map(repr, idle)) or "(an empty list)"
        raise ModelError(f"target_modules {what} matches no linear layer. {_available(linear)}")
    return [name for name in linear if any(_ends(name, end) for end in names)]


def _ends(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


def _available(linear: Mapping[str, ModuleShape]) -> str:
    """The distinct ends of names after the last block number, such as `attention.output.dense`."""
    ends = dict.fromkeys(re.sub(r"^.*\.\d+\.", "", name) for name in linear)
    return f"Available: {', '.join(ends) or 'none, the model has no linear layer'}."
