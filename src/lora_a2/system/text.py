"""Makes untrusted text fit for a log, a terminal, a ledger and a report: one short line of visible characters."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

MOST_CHARACTERS = 200
MOST_LINES = 3


def plain(text: object, most: int = MOST_CHARACTERS) -> str:
    """`text` as one line of at most about `most` characters, without any that move a cursor, start a line or reorder others.

    Control and format characters, line separators, surrogates and unassigned code points (Unicode categories C*, Zl, Zp) are
    escaped as in Python's string literals. Characters that are cut off are counted.
    """
    whole = text if isinstance(text, str) else str(text)
    shown, size = [], 0
    for character in whole[:most]:
        written = character if _visible(character) else character.encode("unicode_escape").decode("ascii")
        size += len(written)
        if size > most:
            break
        shown.append(written)
    left = len(whole) - len(shown)
    return "".join(shown) + (f"… ({left} more characters)" if left else "")


def visible(text: str) -> str:
    """The whole `text`, with characters escaped as in `plain`."""
    return "".join(c if _visible(c) else c.encode("unicode_escape").decode("ascii") for c in text)


def visible_lines(text: str) -> str:
    """The whole `text` with its line breaks and tabs, and other characters escaped as in `plain`."""
    return "".join(c if c in "\n\t" else visible(c) for c in text)


def few(texts: Sequence[object], most: int = MOST_LINES) -> tuple[str, ...]:
    """The first `most` texts, each made `plain`, and one that counts the others."""
    shown = tuple(plain(text) for text in texts[:most])
    left = len(texts) - len(shown)
    return (*shown, f"{left} more lines were left out.") if left else shown


def _visible(character: str) -> bool:
    category = unicodedata.category(character)
    return category[0] != "C" and category not in ("Zl", "Zp")
