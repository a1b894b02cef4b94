"""Values with thousands of parts as one short line, for who types their name in Python."""

from __future__ import annotations

from collections.abc import Sequence

_FEW = 3
_LONGEST = 24


def shown(value: object, *parts: object) -> str:
    """`Examples(24 texts, 3 labels)`; parts that are empty are left out."""
    return f"{type(value).__name__}({', '.join(str(part) for part in parts if str(part))})"


def few(names: Sequence[str]) -> str:
    """The first of these names, and how many more there are."""
    some = ", ".join(name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…" for name in names[:_FEW])
    return some + (f" and {len(names) - _FEW} more" if len(names) > _FEW else "")


def count(number: int, one: str) -> str:
    """`1 text`, `2,400 texts`."""
    return f"{number:,} {one}{'' if number == 1 else 's'}"
