"""The registry: every method by name. A new method is one file here and one row below."""

from __future__ import annotations

import difflib
from typing import Any

from lora_a2.core.names import known_name
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


def get_method(name: str, **options: Any) -> Method:
    """The method called `name`, in any case, with options of its own, in snake_case; one that is None was not given.

    Raises:
        ConfigError: there is none (the message names the nearest), it has no such option, or the option no such value.
    """
    name = known_name(name, METHODS)
    if name not in METHODS:
        near = difflib.get_close_matches(name.casefold(), METHODS, n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"Unknown method {name!r}.{hint} Known methods: {', '.join(METHODS)}.")
    method, own = METHODS[name], {}
    known = {option.name: option for option in method.options}
    for key, value in options.items():
        if value is None:
            continue
        if key not in known:
            having = [m.name for m in METHODS.values() if key in {option.name for option in m.options}]
            instead = f"; use {', '.join(having)}" if having else ", nor has any other method"
            raise ConfigError(f"{key.replace('_', '-')}: {name} has no such switch{instead}.")
        own[key] = known[key].check(value)
    return method.variant(**own) if own and method.variant is not None else method
