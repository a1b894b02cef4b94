"""How files are read: what separates values, how letters are written, and what becomes of rows that lack something."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, TypedDict

from lora_a2.errors import ConfigError

SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "\\t": "\t", "pipe": "|"}
"""Names for what is awkward to type → the character."""

OnMissing = Literal["error", "drop"]


def separator_of(given: str) -> str:
    """The character that a name or a character stands for.

    Raises:
        ValueError: it is no single character, or one that cannot separate values.
    """
    found = SEPARATORS.get(given.strip().lower(), given)
    if len(found) != 1 or found in "\"'\r\n":
        raise ValueError(f"{given!r} is not one character, such as ';', nor one of {', '.join(SEPARATORS)}.")
    return found


def encoding_of(given: str) -> str:
    """The name as it was given.

    Raises:
        ValueError: Python knows no such encoding of text.
    """
    try:
        "a".encode(given)
    except (LookupError, UnicodeError, ValueError):
        raise ValueError(f"{given[:40]!r} is no known encoding; such as utf-8, utf-16, cp1252, latin-1.") from None
    return given


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """How files are read; names as on the command line.

    Attributes:
        separator: what stands between the values of CSV and TSV files; None: found by itself.
        encoding: of text files (CSV, TSV, JSON), by Python's name; None: UTF-8, or what a mark at the beginning says.
        on_missing: rows without a text, a label or whatever else is needed, and test rows whose label no training row has,
            are an error, or are left out.

    Raises:
        ConfigError: one is no such thing.
    """

    separator: str | None = None
    encoding: str | None = None
    on_missing: OnMissing = "error"

    def __post_init__(self) -> None:
        for name, value, check in (
            ("separator", self.separator, separator_of),
            ("encoding", self.encoding, encoding_of),
        ):
            try:
                None if value is None else check(value)
            except ValueError as error:
                raise ConfigError(f"{name}: {error}") from None
        if self.on_missing not in ("error", "drop"):
            raise ConfigError(f"on-missing: {self.on_missing!r} is neither error nor drop.")


class FileKeywords(TypedDict, total=False):
    """The fields of `FileOptions`, for who gives some of them as keywords."""

    separator: str | None
    encoding: str | None
    on_missing: OnMissing


def take_file_options(given: dict[str, Any]) -> FileOptions:
    """The options of files among others, which stay in `given`; None stands for "not given".

    Raises:
        ConfigError: a wrong value.
    """
    found = {name: given.pop(name) for name in FILE_OPTIONS if name in given}
    return FileOptions(**{name: value for name, value in found.items() if value is not None})


FILE_OPTIONS = tuple(field.name for field in fields(FileOptions))
USUAL = FileOptions()
