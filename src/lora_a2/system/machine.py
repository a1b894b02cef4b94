"""What the system offers, and what it does not: the one place that asks which system it is.

Linux offers all of it. Elsewhere, as on a Mac, what a function says of "elsewhere" holds, and everything still runs.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path


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
    cores = [frozenset(value.split()) for key, _, value in pairs if key.strip() in ("flags", "Features")]
    return frozenset.intersection(*cores) if cores else frozenset()
