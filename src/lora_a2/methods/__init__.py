"""The registry: every method by name. A new method is one file here and one row below."""

from __future__ import annotations

import difflib
from typing import Any

from lora_a2.errors import ConfigError
from lora_a2.methods import (
    fed_sb,
    fedex_lora,
    fedrot_lora,
    fedsa_lora,
    fedsvd,
    ffa_lora,
    fl_lora,
    flasc,
    flexlora,
    flora,
    full,
    hetlora,
    lora_a2,
    rolora,
)
from lora_a2.methods.base import Method

METHODS: dict[str, Method] = {
    module.METHOD.name: module.METHOD
    for module in (
        lora_a2,
        fl_lora,
        ffa_lora,
        rolora,
        flexlora,
        hetlora,
        flora,
        fedex_lora,
        fedsa_lora,
        fedsvd,
        flasc,
        fedrot_lora,
        fed_sb,
        full,
    )
}

DEFAULT_METHOD = next(iter(METHODS))
"""The first row's name."""


def get_method(name: str, **switches: Any) -> Method:
    """The method called `name`, with the given switches; a switch that is None was not given.

    Raises:
        ConfigError: there is none (the message names the nearest), or it has no such switch.
    """
    given = {key: value for key, value in switches.items() if value is not None}
    if name in METHODS:
        variant = METHODS[name].variant
        if given and variant is None:
            having = ", ".join(m.name for m in METHODS.values() if m.variant)
            raise ConfigError(f"{next(iter(given))}: {name} has no such switch; use {having}.")
        return variant(**given) if given and variant else METHODS[name]
    near = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"Unknown method {name!r}.{hint} Known methods: {', '.join(METHODS)}.")
