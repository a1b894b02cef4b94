"""An append-only file of JSON lines, and beside it the digest of each line.

    NAME.jsonl    the lines
    NAME.sha256   the sha256 of each line, in hex, one per line

The number of committed lines is stored elsewhere: a kill may leave more lines in either file, which are cut off.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_a2.errors import RunError
from lora_a2.system.files import append, sha256, write_atomic


class Journal:
    """The lines at `path`, which ends in .jsonl; missing files count as empty."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._digests = path.with_suffix(".sha256")

    def append(self, values: Mapping[str, Any]) -> None:
        """Adds a line.

        Raises:
            OSError: it cannot be written.
        """
        line = json.dumps(values, allow_nan=False).encode()
        append(self.path, line + b"\n")
        append(self._digests, sha256(line).encode() + b"\n")

    def read(self, count: int) -> list[bytes]:
        """The first `count` lines.

        Raises:
            RunError: one of them was changed or is missing.
        """
        lines, digests = _lines(self.path)[:count], _lines(self._digests)[:count]
        if len(lines) < count or len(digests) < count:
            name, found = (self.path, lines) if len(lines) < count else (self._digests, digests)
            raise RunError(f"{name} is damaged: it has {len(found)} whole lines, but {count} were committed.")
        for number, (line, digest) in enumerate(zip(lines, digests, strict=True), start=1):
            if sha256(line).encode() != digest:
                raise RunError(f"{self.path} is damaged: line {number} does not match its digest in {self._digests}.")
        return lines

    def cut(self, count: int) -> None:
        """Drops what comes after the first `count` lines.

        Raises:
            OSError: it cannot be written.
        """
        for path in (self.path, self._digests):
            kept = b"".join(line + b"\n" for line in _lines(path)[:count])
            if path.exists() and path.read_bytes() != kept:
                write_atomic(path, kept)


def _lines(path: Path) -> list[bytes]:
    """The whole lines: text after the last newline is a line that a kill cut off."""
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []
