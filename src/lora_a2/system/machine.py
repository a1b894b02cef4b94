"""What the system offers beside files and signals, and what is done without it.

Linux offers all of it. "Elsewhere" is another Unix, such as a Mac's: everything runs there, in one process. Windows is refused.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from lora_a2.errors import LoraA2Error

SOCKET_PATH_LIMIT = 107 if sys.platform == "linux" else 103
"""Bytes of a local socket's path that the system takes."""

_MAC_LOCAL, _MAC_PEER = 0, 1  # SOL_LOCAL and LOCAL_PEERCRED of sys/un.h, which Python does not name
_MAC_CREDENTIALS = 76  # bytes of struct xucred: version, user, and groups


def require_unix() -> None:
    """Nothing here can run on Windows itself.

    Raises:
        LoraA2Error: this is Windows.
    """
    if sys.platform == "win32":
        raise LoraA2Error(
            "lora-a2 runs on Linux and macOS; on Windows use WSL: https://learn.microsoft.com/windows/wsl"
        )


def forks() -> bool:
    """Whether this process can be copied in the midst of its work: on Linux; a Mac's own libraries do not survive it."""
    return sys.platform == "linux"


def cores() -> list[int]:
    """The numbers of the cores that this process may use; elsewhere, of all cores of the machine."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def stay_on(numbers: Iterable[int]) -> None:
    """Keeps this process, and what it starts, on these cores; elsewhere nothing happens."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, numbers)


def peak_memory() -> int:
    """The most bytes of memory that this process has held."""
    import resource  # Windows has none, and comes as far as `require_unix`

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def private_memory() -> int:
    """The bytes of memory that this process holds and shares with no other; elsewhere 0."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def keep_freed_memory() -> None:
    """Lets what one step has freed serve the next: glibc gives it back to the kernel, which then has to clear it page by page.

    Elsewhere nothing happens.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, at its upper limit
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def peer_user(connection: socket.socket) -> int:
    """The user at the other end of a local socket, as the kernel knows it."""
    if hasattr(socket, "SO_PEERCRED"):
        _, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    else:
        _, user = struct.unpack_from("2I", connection.getsockopt(_MAC_LOCAL, _MAC_PEER, _MAC_CREDENTIALS))
    return int(user)


@cache
def processor_flags() -> frozenset[str]:
    """The instructions that the processor has, by the kernel's names for them (avx512_bf16, …); elsewhere none are known."""
    try:
        return flags_in(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return frozenset()


def flags_in(cpuinfo: str) -> frozenset[str]:
    """What every core of a /proc/cpuinfo has: under "flags" on x86, under "Features" on ARM, whose cores may differ."""
    pairs = (line.partition(":") for line in cpuinfo.splitlines())
    found = [frozenset(value.split()) for key, _, value in pairs if key.strip() in ("flags", "Features")]
    return frozenset.intersection(*found) if found else frozenset()
