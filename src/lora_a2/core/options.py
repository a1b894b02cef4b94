"""An option of one method, declared in the method's own file."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lora_a2.core.names import known_name
from lora_a2.errors import ConfigError

Value = bool | int | float | str


@dataclass(frozen=True)
class Option:
    """An option that only some methods have. It shows up by itself on the command line, in files and in a Flower app.

    Nodes take it from the server that they serve, so that it is a number, a switch or one of a few words, and never a path.

    Attributes:
        name: in snake_case; the argument of the method's `variant`.
        default: what holds if it is not given; its type is the option's.
        help: one sentence, with a full stop.
        choices: the words allowed, where it is a word.
        least, most: bounds of a number, themselves allowed.
        above: a bound that is not allowed itself.
    """

    name: str
    default: Value
    help: str
    choices: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None
    above: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.default, str) != bool(self.choices):
            raise TypeError(f"{self.name}: an option has choices where its default is a word, and only there")
        self.check(self.default)

    @property
    def key(self) -> str:
        """As users spell it."""
        return self.name.replace("_", "-")

    def check(self, value: object) -> Value:
        """The value, if it is one of this option.

        Raises:
            ConfigError: it is not.
        """
        kind = type(self.default)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
            names = {bool: "True or False", int: "a whole number", float: "a number", str: "a word"}
            raise ConfigError(f"{self.key}: {value!r} should be {names[kind]}.")
        if isinstance(value, str):
            value = known_name(value, self.choices)
            if value not in self.choices:
                raise ConfigError(f"{self.key}: {value!r} is not one of {', '.join(self.choices)}.")
        elif not math.isfinite(value):
            raise ConfigError(f"{self.key}: {value} should be a finite number.")
        elif self.above is not None and value <= self.above:
            raise ConfigError(f"{self.key}: {value} should be greater than {self.above}.")
        elif self.least is not None and value < self.least:
            raise ConfigError(f"{self.key}: {value} should be greater than or equal to {self.least}.")
        elif self.most is not None and value > self.most:
            raise ConfigError(f"{self.key}: {value} should be less than or equal to {self.most}.")
        return value
