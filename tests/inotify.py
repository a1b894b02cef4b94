"""Which files are opened during a block, as reported by the kernel (Linux)."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_OPEN = 0x20
_EVENT = struct.Struct("iIII")


@contextmanager
def opened(folders: Sequence[Path]) -> Iterator[set[Path]]:
    """A set that holds, after the block, every file in these folders that any process opened within it."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_NONBLOCK)
    assert descriptor >= 0, os.strerror(ctypes.get_errno())
    found: set[Path] = set()
    try:
        watches = {libc.inotify_add_watch(descriptor, os.fsencode(folder), _OPEN): folder for folder in folders}
        assert min(watches) > 0, os.strerror(ctypes.get_errno())
        yield found
        found |= {watches[watch] / name for watch, name in _events(descriptor) if name}
    finally:
        os.close(descriptor)


def _events(descriptor: int) -> Iterator[tuple[int, str]]:
    while True:
        try:
            data = os.read(descriptor, 1 << 16)
        except BlockingIOError:
            return
        while data:
            watch, _, _, length = _EVENT.unpack_from(data)
            end = _EVENT.size + length
            yield watch, data[_EVENT.size : end].rstrip(b"\0").decode()
            data = data[end:]
