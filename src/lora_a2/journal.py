"""A file of JSON lines that only grows, and of which a mark tells how far it counts and what stands there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_a2.errors import RunError
from lora_a2.files import append, sha256, write_atomic

Mark = Mapping[str, Any]
"""`bytes`, the length of what counts, and its `sha256`."""


class Journal:
    """The file at `path`; one that is not there is empty.

    The digest runs along with the lines: what is there already is read once, before the first line of this process.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._digest = hashlib.sha256()
        self._size: int | None = None

    def append(self, values: Mapping[str, Any]) -> None:
        """Adds a line.

        Raises:
            OSError: it cannot be written.
        """
        self._measure()
        assert self._size is not None
        line = json.dumps(values).encode() + b"\n"
        append(self.path, line)
        self._digest.update(line)
        self._size += len(line)

    def mark(self) -> dict[str, Any]:
        """The mark of all that is there."""
        self._measure()
        return {"bytes": self._size, "sha256": self._digest.hexdigest()}

    def read(self, mark: Mark) -> list[bytes]:
        """The lines up to a mark.

        Raises:
            RunError: they are not what they were.
        """
        data = self._data()[: int(mark["bytes"])]
        if len(data) != mark["bytes"] or sha256(data) != mark["sha256"]:
            raise RunError(f"{self.path} is damaged: its lines are not those that were committed.")
        return data.splitlines()

    def cut(self, mark: Mark) -> None:
        """Drops what comes after a mark.

        Raises:
            OSError: it cannot be written.
        """
        data = self._data()
        if len(data) > mark["bytes"]:
            write_atomic(self.path, data[: int(mark["bytes"])])
        self._size = None

    def _data(self) -> bytes:
        return self.path.read_bytes() if self.path.exists() else b""

    def _measure(self) -> None:
        if self._size is None:
            data = self._data()
            self._digest, self._size = hashlib.sha256(data), len(data)


EMPTY: Mark = {"bytes": 0, "sha256": sha256(b"")}
"""The mark of a file in which nothing counts."""
