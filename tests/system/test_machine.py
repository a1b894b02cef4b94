"""System features, as found here, and as missing elsewhere."""

from __future__ import annotations

import os
import socket
import struct
import sys

import pytest

from lora_a2.system import machine
from lora_a2.system.machine import cores, flags_in, peak_memory, peer_user, private_memory, stay_on

X86 = "processor\t: 0\nmodel name\t: Xeon flags: none\nflags\t\t: fpu avx2 avx512_bf16\n\nprocessor\t: 1\nflags\t\t: fpu avx2 avx512_bf16\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd\n\nprocessor\t: 1\nFeatures\t: fp asimd bf16\n"


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [(X86, {"fpu", "avx2", "avx512_bf16"}), (ARM, {"fp", "asimd"}), ("cpu\t: POWER9\n", set()), ("", set())],
)
def test_flags_are_those_that_every_core_has(cpuinfo: str, expected: set[str]) -> None:
    assert flags_in(cpuinfo) == expected


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_the_cores_are_those_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {7, 2})
    assert cores() == [2, 7]
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cores() == list(range(os.cpu_count() or 1))


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_a_process_is_kept_on_cores_where_that_is_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, set[int]]] = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda process, numbers: asked.append((process, set(numbers))))
    stay_on([1, 3])
    assert asked == [(0, {1, 3})]
    monkeypatch.delattr(os, "sched_setaffinity")
    stay_on([1, 3])
    assert asked == [(0, {1, 3})]


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_memory_is_counted_in_bytes() -> None:
    held, before = bytearray(os.urandom(2**20) * 64), peak_memory()
    assert 64 * 2**20 < len(held) + private_memory() < 2 * before
    assert before < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_the_kernel_says_who_is_at_the_other_end() -> None:
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        assert peer_user(one) == os.geteuid()


def test_a_mac_says_it_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "SO_PEERCRED", raising=False)

    class Connection:
        def getsockopt(self, level: int, option: int, size: int) -> bytes:
            assert (level, option) == (0, 1)
            return struct.pack("IIh2x16I", 0, 501, 2, *range(16))[:size]

    assert peer_user(Connection()) == 501  # type: ignore[arg-type]
    assert struct.calcsize("IIh2x16I") == machine._MAC_CREDENTIALS
