"""Processes that end with the one that started them, however that ends: also by SIGKILL, which it cannot pass on."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


def end_with_parent(parent: int) -> None:
    """Has the kernel kill this process when `parent`, which started it, is gone; on Linux, elsewhere nothing happens.

    It holds for the thread that started this process: that one has to wait for it.
    """
    if sys.platform != "linux":
        return
    if ctypes.CDLL(None, use_errno=True).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:  # it had gone before the kernel was told
        os.kill(os.getpid(), signal.SIGKILL)
