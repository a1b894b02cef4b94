"""Names as people type them: LoRA-A2, lora_a2 and lora-a2 are the same method."""

from __future__ import annotations

from collections.abc import Iterable


def known_name(name: str, names: Iterable[str]) -> str:
    """The one of `names` that is meant, whatever its case and with `_` for `-`; a name that is none of them as it is."""
    return next((known for known in names if _folded(known) == _folded(name)), name)


def _folded(name: str) -> str:
    return name.casefold().replace("_", "-")
