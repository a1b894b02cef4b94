"""What the system offers, as it is found here, and where much of it is missing."""

from __future__ import annotations

import pytest

from lora_a2.system.machine import flags_in

X86 = "processor\t: 0\nmodel name\t: Xeon flags: none\nflags\t\t: fpu avx2 avx512_bf16\n\nprocessor\t: 1\nflags\t\t: fpu avx2 avx512_bf16\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd\n\nprocessor\t: 1\nFeatures\t: fp asimd bf16\n"


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [(X86, {"fpu", "avx2", "avx512_bf16"}), (ARM, {"fp", "asimd"}), ("cpu\t: POWER9\n", set()), ("", set())],
)
def test_flags_are_those_that_every_core_has(cpuinfo: str, expected: set[str]) -> None:
    assert flags_in(cpuinfo) == expected
