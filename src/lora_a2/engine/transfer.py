"""From the host to the device without waiting for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CPU = torch.device("cpu")


def to_device(values: NDArray[Any], device: torch.device) -> Tensor:
    """The values on `device`; on the CPU they share memory with `values`.

    A GPU copies from pinned memory while the host goes on; from other memory the host would wait for all that it had asked of
    the GPU before.
    """
    held = torch.from_numpy(np.ascontiguousarray(values))
    return held.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else held.to(device)
