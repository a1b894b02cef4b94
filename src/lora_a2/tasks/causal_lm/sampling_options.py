"""Options of writing, those of Transformers' `generate()` by their names. They are checked without PyTorch."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from lora_a2.errors import ConfigError

_OF_SAMPLING = ("temperature", "top_k", "top_p", "seed")


@dataclass(frozen=True)
class SamplingOptions:
    """Names, meanings and defaults as in Transformers' `generate()`; nothing is taken from a model's own generation config.

    Attributes:
        max_new_tokens: most tokens of an answer.
        do_sample: draw tokens; otherwise the likeliest is taken, or the likeliest of `num_beams` continuations.
        temperature: divides the logits before drawing.
        top_k: only so many of the likeliest tokens are drawn from; 0: all.
        top_p: only the likeliest tokens that together have this probability are drawn from.
        repetition_penalty: divides the positive logits of tokens of prompt and answer, and multiplies negative ones.
        num_beams: continuations that are followed side by side.
        seed: of the draws.

    Raises:
        ConfigError: a value is out of range, or has no effect beside the others.
    """

    max_new_tokens: int = 128
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    num_beams: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("max_new_tokens", 1), ("top_k", 0), ("num_beams", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"{_key(name)}: {value!r} should be a whole number from {least} on.")
        for name in ("temperature", "repetition_penalty", "top_p"):
            _check_positive(name, getattr(self, name))
        if self.top_p > 1:
            raise ConfigError(f"top-p: {self.top_p} should be at most 1.")
        for field in fields(self):
            if field.name in _OF_SAMPLING and not self.do_sample and getattr(self, field.name) != field.default:
                raise ConfigError(
                    f"{_key(field.name)}: it has no effect here; it needs do-sample. Leave it out otherwise."
                )
        if self.do_sample and self.num_beams > 1:
            raise ConfigError(f"num-beams: {self.num_beams} beams are followed without drawing; leave out do-sample.")


def _key(name: str) -> str:
    return name.replace("_", "-")


def _check_positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ConfigError(f"{_key(name)}: {value!r} should be a number greater than 0.")
