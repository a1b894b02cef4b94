"""Pydantic's complaints as one line that a user understands."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from pydantic import ValidationError
from pydantic_core import ErrorDetails


def kebab(name: str) -> str:
    """`num_clients` → `num-clients`."""
    return name.replace("_", "-")


def one_line(error: ValidationError, known: Sequence[str]) -> str:
    """What is wrong, sentence by sentence; `known` are the fields' names in kebab-case."""
    # The default of one field is not computed where the field it depends on is wrong; that one is reported already.
    details = [d for d in error.errors() if not d["type"].startswith("default_factory")]
    return " ".join(dict.fromkeys(_sentence(d, known) for d in details))


def _sentence(detail: ErrorDetails, known: Sequence[str]) -> str:
    key = kebab(str(detail["loc"][0])) if detail["loc"] else ""
    kind, given, message = detail["type"], detail["input"], detail["msg"]
    if kind == "extra_forbidden":
        return _unknown_key(key, known)
    if kind == "value_error":
        message = message.removeprefix("Value error, ")
        return f"{key}: {message}" if key else message
    if kind == "literal_error":
        choices = detail["ctx"]["expected"].replace(" or ", ", ").replace("'", "")
        return f"{key}: {given!r} is not one of {choices}."
    shown = given if kind.startswith(("greater_", "less_", "finite_")) else repr(given)  # a flag's "0" is the number 0
    return f"{key}: {shown} {message[:1].lower()}{message[1:]}.".replace(" input should ", " should ")


def _unknown_key(key: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"Unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else f"; the keys are {', '.join(known)}.")
