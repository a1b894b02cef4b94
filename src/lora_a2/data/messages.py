"""A chat as tables hold it: a list of messages with role and content, or, as in ShareGPT's files, with from and value."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from lora_a2.data.written import Turn
from lora_a2.errors import DataError

_KEYS = (("role", "content"), ("from", "value"))
_ROLES = {
    **{role: role for role in ("system", "user", "assistant", "tool", "developer")},
    **{"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "chatgpt": "assistant"},
}
"""Usual names of roles, whatever their case → what templates call them."""
_MEANINGLESS = ("id",)
"""Keys of a message that change nothing of what is said."""


def read_chat(value: object, place: str) -> tuple[Turn, ...]:
    """The turns of a chat; in a table of texts, such as CSV, it may be written as JSON.

    Raises:
        DataError: it is no list of messages with a role and a content each, or nobody answers in it. `place` stands in front.
    """
    value = _listed(plain(value), place)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise DataError(
            f"{place} holds {_short(value)}, no chat: expected a list of messages, each with role and content."
        )
    if not value:
        raise DataError(f"{place} holds a chat without messages; remove the row.")
    turns = tuple(_turn(plain(message), f"{place}, message {number}") for number, message in enumerate(value, start=1))
    if not any(turn.role == "assistant" for turn in turns):
        raise DataError(
            f"{place} has no turn of the assistant, so that there is nothing to learn, but only of "
            f"{', '.join(dict.fromkeys(turn.role for turn in turns))}; remove the row."
        )
    return turns


def plain(value: object) -> object:
    """A list in place of an array."""
    to_list = getattr(value, "tolist", None)
    return value if to_list is None else to_list()


def _listed(value: object, place: str) -> object:
    """A list of messages as it is, out of JSON, or of a struct of lists, which some files make of it."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{place} holds a chat as JSON that cannot be read: {error or 'it is nested too deep'}."
            ) from None
    if isinstance(value, Mapping) and value:
        columns = {key: plain(column) for key, column in value.items()}
        lengths = {len(column) if isinstance(column, list) else -1 for column in columns.values()}
        if len(lengths) == 1 and lengths != {-1}:
            return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return value


def _turn(message: object, place: str) -> Turn:
    if not isinstance(message, Mapping):
        raise DataError(f"{place}, is {_short(message)}: expected an object with role and content.")
    keys = next(((r, c) for r, c in _KEYS if r in message and c in message), None)
    if keys is None:
        raise DataError(
            f"{place}, has the keys {', '.join(map(str, message)) or 'of nothing'}: expected role and content."
        )
    role, content = message[keys[0]], _content(plain(message[keys[1]]))
    for key, value in message.items():
        counts_as_usual = key == "weight" and value == 1
        if key not in (*keys, *_MEANINGLESS) and not counts_as_usual and not _empty(plain(value)):
            raise DataError(f"{place}, has {str(key)[:40]!r}, which is not understood here: remove it, or the row.")
    if not isinstance(role, str) or not role.strip():
        raise DataError(f"{place}, has {_short(role)} for a role: expected system, user or assistant.")
    named = _ROLES.get(role.strip().lower(), role.strip())
    if not isinstance(content, str):
        raise DataError(f"{place}, has a content that is no text, but {_short(content)}.")
    if named == "assistant" and not content.strip():
        raise DataError(f"{place}: the assistant says nothing; remove the row.")
    return Turn(named, content)


def _content(value: object) -> object:
    """The text of a content that is a list of parts, if all of them are text."""
    parts = value if isinstance(value, list) and all(isinstance(part, Mapping) for part in value) else []
    texts = [part.get("text") for part in parts if part.get("type") == "text"]
    return "".join(map(str, texts)) if parts and len(texts) == len(parts) and None not in texts else value


def _empty(value: object) -> bool:
    return value is None or value == "" or (isinstance(value, list | Mapping) and not value)


def _short(value: object) -> str:
    """What a wrong value is, in a few words."""
    if value is None:
        return "nothing"
    return f"the {type(value).__name__} {str(value)[:40]!r}"
