"""The registry: every method by name. A new method is one file here and one row below."""

from __future__ import annotations

import difflib

from lora_a2.errors import ConfigError
from lora_a2.method import Method
from lora_a2.methods import ffa_lora, fl_lora, lora_a2

METHODS: dict[str, Method] = {m.name: m for m in (lora_a2.METHOD, fl_lora.METHOD, ffa_lora.METHOD)}

DEFAULT_METHOD = next(iter(METHODS))
"""The first row's name."""


def get_method(name: str) -> Method:
    """The method called `name`.

    Raises:
        ConfigError: there is none; the message names the nearest.
    """
    if name in METHODS:
        return METHODS[name]
    near = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"Unknown method {name!r}.{hint} Known methods: {', '.join(METHODS)}.")
