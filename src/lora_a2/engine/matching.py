"""Which of a backbone's linear layers get an adapter, by their names: what PEFT calls `target_modules`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lora_a2.core.types import ModuleShape
from lora_a2.errors import ModelError

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class Layers:
    """What of a backbone may be adapted.

    Attributes:
        linear: every linear layer, by name, in the order in which the backbone registers them.
        blocks: names of its lists of transformer blocks.
    """

    linear: Mapping[str, ModuleShape]
    blocks: Sequence[str]


def choose_layers(layers: Layers, target_modules: str | Sequence[str] | None = None) -> tuple[ModuleShape, ...]:
    """The linear layers to adapt, in the order in which the backbone registers them.

    Args:
        layers: of the model without a head.
        target_modules: None or "all-linear": every linear layer of every transformer block. A list: layers whose full
            name, or whose name's end after a dot, is one of it. Any other string: a regular expression that matches
            the full name.

    Raises:
        ModelError: nothing matches, or an entry of the list matches nothing; the message lists what there is.
    """
    if target_modules is None or target_modules in (ALL_LINEAR, [ALL_LINEAR], (ALL_LINEAR,)):
        chosen = _inside_blocks(layers)
    elif isinstance(target_modules, str):
        chosen = _matching(target_modules, layers.linear)
    else:
        chosen = _ending(target_modules, layers.linear)
    return tuple(layers.linear[name] for name in chosen)


def _inside_blocks(layers: Layers) -> list[str]:
    chosen = [name for name in layers.linear if any(name.startswith(f"{block}.") for block in layers.blocks)]
    if not chosen:
        raise ModelError(f"No linear layers inside transformer blocks were found. {_available(layers.linear)}")
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
