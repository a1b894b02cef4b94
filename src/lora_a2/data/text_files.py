"""Text files whoever wrote them: brought to UTF-8, and the separator of their values found."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),  # the first two bytes of UTF-32's, so behind it
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""What a file may begin with → its encoding."""

CANDIDATES = (",", ";", "\t", "|")
_SAMPLE = 100
_CHUNK = 1 << 20


def in_utf8(path: Path, encoding: str | None) -> Path:
    """The file in UTF-8: itself, or a new one beside it.

    Raises:
        ValueError: it is not written in `encoding` (None: UTF-8, or what its mark says); the message suggests one.
    """
    with path.open("rb") as file:
        head = file.read(4096)
    marked = next((name for mark, name in MARKS if head.startswith(mark)), None)
    if encoding is not None and marked is not None and not _known(encoding).startswith(marked.removesuffix("-sig")):
        raise ValueError(f"it begins with the mark of {marked}, and encoding is {encoding}: leave that out")
    if encoding is None and marked is None and 4 * head.count(0) > len(head):
        order = "le" if head[1::2].count(0) >= head[::2].count(0) else "be"
        raise ValueError(f"every other byte is zero, as in UTF-16 without a mark; try --encoding utf-16-{order}")
    chosen = encoding or marked or "utf-8"
    if _known(chosen) in ("utf-8", "utf-8-sig"):
        for _ in _decoded(path, "utf-8-sig"):
            pass
        return path
    target = path.with_name(f"utf8-{path.name}")
    with target.open("wb") as out:
        for text in _decoded(path, chosen):
            out.write(text.encode())
    if marked is None and _is_utf8(path):
        raise ValueError(f"it is UTF-8 text, and encoding is {encoding}: leave that out")
    return target


def _known(encoding: str) -> str:
    return codecs.lookup(encoding).name


def _decoded(path: Path, encoding: str) -> Iterator[str]:
    """The text of a file, piece by piece.

    Raises:
        ValueError: a byte cannot be decoded.
    """
    decoder, line = codecs.getincrementaldecoder(encoding)(), 1
    with path.open("rb") as file:
        while True:
            chunk = file.read(_CHUNK)
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                line += error.object[: error.start].count(b"\n")
                raise ValueError(_undecoded(path, encoding.removesuffix("-sig"), line, error)) from None
            line += text.count("\n")
            yield text
            if not chunk:
                return


def _undecoded(path: Path, encoding: str, line: int, error: UnicodeDecodeError) -> str:
    byte = error.object[error.start : error.start + 1].hex()
    other = "cp1252"
    try:
        path.read_bytes().decode(other)
    except UnicodeDecodeError:
        other = "latin-1"
    hint = f"try --encoding {other}" if encoding == "utf-8" else "name another with --encoding"
    return f"line {line} is not {encoding.upper()} text (byte 0x{byte}); {hint}"


def _is_utf8(path: Path) -> bool:
    """Whether the file is UTF-8 and not plain ASCII, which is the same in most encodings."""
    decoder, beyond = codecs.getincrementaldecoder("utf-8")(), False
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            beyond = beyond or not chunk.isascii()
            try:
                decoder.decode(chunk)
            except UnicodeDecodeError:
                return False
    return beyond


def find_separator(path: Path, usual: str) -> str:
    """What separates the values of a UTF-8 file: the candidate by which most of the first rows are as wide as a header of
    several columns. `usual` if none does better."""
    return max((usual, *CANDIDATES), key=lambda separator: _fit(path, separator))


def _fit(path: Path, separator: str) -> float:
    """The share of the first rows that have as many values as the header, 0 if that has one."""
    widths: list[int] = []
    with path.open(encoding="utf-8-sig", newline="") as lines, suppress(csv.Error):  # a field of more than 128 kB
        widths.extend(len(row) for row in islice(csv.reader(lines, delimiter=separator), _SAMPLE) if row)
    if not widths or widths[0] < 2:
        return 0.0
    return sum(width == widths[0] for width in widths) / len(widths)
