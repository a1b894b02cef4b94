"""System features other than files and signals, and what happens without them.

Linux has all of them. "Elsewhere" means another Unix, such as macOS: everything runs there, in one process. Windows is refused.
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
"""The longest path of a local socket, in bytes."""

_MAC_LOCAL, _MAC_PEER = 0, 1  # SOL_LOCAL and LOCAL_PEERCRED of sys/un.h, which Python does not name
_MAC_CREDENTIALS = 76  # bytes of struct xucred: version, user, and groups


def require_unix() -> None:
    """Checks that the system is not Windows.

    Raises:
        LoraA2Error: this is Windows.
    """
    if sys.platform == "win32":
        raise LoraA2Error(
            "lora-a2 runs on Linux and macOS; on Windows use WSL: https://learn.microsoft.com/windows/wsl"
        )


def forks() -> bool:
    """Whether this process can fork while it works: on Linux; macOS's own libraries do not survive it."""
    return sys.platform == "linux"


def cores() -> list[int]:
    """The numbers of the cores that this process may use; elsewhere of all cores."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def stay_on(numbers: Iterable[int]) -> None:
    """Pins this process, and its children, to these cores; elsewhere it does nothing."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, numbers)


def peak_memory() -> int:
    """The peak memory of this process in bytes."""
    import resource  # missing on Windows, which must still get to `require_unix`

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def private_memory() -> int:
    """The bytes of memory that this process does not share with others; elsewhere 0."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def free_memory() -> int | None:
    """The bytes of memory that new work can have, by the kernel and by the container's limit; elsewhere None."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    try:
        limit, used = (Path(f"/sys/fs/cgroup/memory.{name}").read_text().strip() for name in ("max", "current"))
    except OSError:  # no container, or one of another kind
        return free
    return free if limit == "max" else min(free, max(0, int(limit) - int(used)))


def keep_freed_memory() -> None:
    """Keeps memory freed by one step for the next: glibc would return it to the kernel, which clears every page again.

    Elsewhere it does nothing.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, at its upper limit
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def peer_user(connection: socket.socket) -> int:
    """The id of the user at the other end of a local socket, from the kernel."""
    if hasattr(socket, "SO_PEERCRED"):
        _, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    else:
        _, user = struct.unpack_from("2I", connection.getsockopt(_MAC_LOCAL, _MAC_PEER, _MAC_CREDENTIALS))
    return int(user)


@cache
def processor_flags() -> frozenset[str]:
    """The processor's instruction sets, by the kernel's names (avx512_bf16, …); elsewhere empty."""
    try:
        return flags_in(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return frozenset()


def flags_in(cpuinfo: str) -> frozenset[str]:
    """The flags that all cores in a /proc/cpuinfo have: "flags" on x86, "Features" on ARM, whose cores may differ."""
    pairs = (line.partition(":") for line in cpuinfo.splitlines())
    found = [frozenset(value.split()) for key, _, value in pairs if key.strip() in ("flags", "Features")]
    return frozenset.intersection(*found) if found else frozenset()
