"""Which column holds the text, which the label: found by the usual names, or as the user says."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from lora_a2.errors import DataError

TEXT_COLUMNS: tuple[tuple[str, ...], ...] = (
    ("text",),
    ("sentence", "utterance", "tweet", "content", "message", "query", "question", "body", "review", "comment", "post"),
)
"""Usual names by preference: the first group with a match decides, and must have exactly one."""

LABEL_COLUMNS: tuple[tuple[str, ...], ...] = (
    ("label_text", "label_name"),
    ("label", "labels"),
    ("intent", "category", "class", "target", "topic", "sentiment", "emotion"),
)
"""As `TEXT_COLUMNS`. A label's text comes before its number, which says nothing in a report."""


@dataclass(frozen=True)
class Columns:
    """Names of the columns that are used; `client` None if examples belong to nobody."""

    text: str
    label: str
    client: str | None

    def named(self) -> dict[str, str]:
        """Role → name, of those that there are."""
        found = {"text": self.text, "label": self.label, "client": self.client}
        return {role: name for role, name in found.items() if name is not None}


def find_columns(names: Sequence[str], source: str, text: str | None, label: str | None, client: str | None) -> Columns:
    """The columns of a table with these `names`: as named by the user, else by the usual names (case is ignored).

    Raises:
        DataError: a column named by the user is missing, or none or several of the usual ones exist.
    """
    for name in (text, label, client):
        if name is not None:
            require(name, names, source)
    for role, name in (("label", label), ("client", client)):
        if text is not None and text == name:
            raise DataError(
                f"Column '{text}' of {source} cannot be both the text and the {role}: name another for one of them."
            )
    # The label first: a column that the user has given one role is not a candidate for another.
    label = label or _guess(LABEL_COLUMNS, [n for n in names if n not in (text, client)], names, source, "label")
    text = text or _guess(TEXT_COLUMNS, [n for n in names if n not in (label, client)], names, source, "text")
    return Columns(text, label, client)


def find_text_column(names: Sequence[str], source: str, text: str | None) -> str:
    """The column of the texts, of a table that need not have labels; otherwise as `find_columns`.

    Raises:
        DataError: the column named by the user is missing, or none or several of the usual ones exist.
    """
    if text is not None:
        require(text, names, source)
        return text
    return _guess(TEXT_COLUMNS, names, names, source, "text")


def opening(source: str) -> str:
    """The name of a table as the first words of a sentence."""
    return source.replace("the ", "The ", 1) if source.startswith("the ") else source


def require(name: str, names: Sequence[str], source: str) -> None:
    """Raises DataError, with the nearest match, unless the table has a column `name`."""
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise DataError(f"{opening(source)} has no column '{name}'; its columns are {listed(names)}.{hint}")


def _guess(
    usual: tuple[tuple[str, ...], ...], candidates: Sequence[str], names: Sequence[str], source: str, role: str
) -> str:
    for group in usual:
        found = [name for name in candidates if name.strip().lower() in group]
        if len(found) == 1:
            return found[0]
        if found:
            raise DataError(
                f"Several columns of {source} could be the {role}: {listed(found)} (all columns: {listed(names)}); "
                f"name one with --{role}-column."
            )
    raise DataError(
        f"Which column of {source} is the {role} cannot be told from its columns {listed(names)}; "
        f"name it with --{role}-column{one_column(names)}."
    )


def one_column(names: Sequence[str]) -> str:
    """What to add to an error where a table has a single column, as a file whose separator was not found has."""
    return ", or what separates the values with --separator" if len(names) == 1 else ""


def listed(names: Sequence[str]) -> str:
    """The names in quotes; of many the first twenty."""
    shown = ", ".join(f"'{name}'" for name in names[:20])
    return shown + (f" and {len(names) - 20} more" if len(names) > 20 else "")
