"""A simulated Mac: `become_a_mac` removes from this process what only Linux has."""

from __future__ import annotations

import ctypes
import os
import resource
import socket
import sys
from types import SimpleNamespace
from typing import Any

_KERNELS = "lora_a2.engine.kernels"
_ONLY_LINUX: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (os, ("sched_getaffinity", "sched_setaffinity")),
    (socket, ("SO_PEERCRED",)),
)


def become_a_mac() -> None:
    """Call it before lora-a2 is imported: it removes, for good, what is not there, and fails whoever asks for it."""
    import datasets  # noqa: F401  what others do by the system, they do for the one that this is
    import pandas  # noqa: F401
    import peft  # noqa: F401
    import torch  # noqa: F401
    import transformers  # noqa: F401

    assert "lora_a2" not in sys.modules
    sys.platform = "darwin"
    for module, names in _ONLY_LINUX:
        for name in names:
            delattr(module, name)
    for kernel in ("_attention", "_skinny", "_table"):
        sys.modules[f"{_KERNELS}.{kernel}"] = None  # type: ignore[assignment]  # as if there was no compiler
    in_kilobytes = resource.getrusage
    resource.getrusage = lambda who: SimpleNamespace(ru_maxrss=1024 * in_kilobytes(who).ru_maxrss)  # type: ignore[assignment,return-value]
    ctypes.CDLL = SimpleNamespace  # type: ignore[assignment,misc]  # a library without prctl and mallopt
    sys.addaudithook(_audit)


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and str(arguments[0]).startswith("/proc"):
        raise FileNotFoundError(2, "No such file or directory", arguments[0])
    if event == "os.fork":
        raise AssertionError("a Mac's libraries do not survive a fork")
