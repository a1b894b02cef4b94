"""Which device and which dtype: by flag, or by a look at the machine."""

from __future__ import annotations

import copy
import re
import time
from functools import cache

import torch
from transformers import PreTrainedModel

from lora_a2.errors import ModelError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def pick_device(name: str) -> torch.device:
    """The device called `name`; "auto": CUDA where there is one, else the CPU.

    Raises:
        ModelError: PyTorch knows no such device, or this machine has none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"Device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype called `name`; "auto": bfloat16 where its products are clearly faster than float32's.

    Raises:
        ModelError: unknown name.
    """
    if name == "auto":
        return torch.bfloat16 if _bfloat16_pays(device) else torch.float32
    if name not in DTYPES:
        raise ModelError(f"Unknown dtype {name!r}: choose one of auto, {', '.join(DTYPES)}.")
    return DTYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    """The name that `pick_dtype` takes."""
    return next(name for name, value in DTYPES.items() if value == dtype)


def dtypes_in(backbone: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """Name of a weight or buffer → its number type in Transformers' own model of this kind, loaded in `dtype`.

    Rotary frequencies, and what a model marks as sensitive, stay in float32 there.
    """
    with torch.device("meta"):
        usual: PreTrainedModel = type(backbone)._from_config(copy.deepcopy(backbone.config), dtype=dtype)  # type: ignore[no-untyped-call]
    strict = [re.compile(rf"(^|\.){part}($|\.)") for part in usual._keep_in_fp32_modules_strict or ()]
    found = {name: value.dtype for name, value in usual.named_buffers()}
    for name, _ in usual.named_parameters():
        found[name] = torch.float32 if any(pattern.search(name) for pattern in strict) else dtype
    return found


@cache
def _bfloat16_pays(device: torch.device) -> bool:
    """Measured, since a CPU may run bfloat16 natively, emulate it, or refuse it: at least 1.5 times float32's rate."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())

    def seconds(dtype: torch.dtype) -> float:
        x, w = (torch.ones(512, 512, dtype=dtype, device=device) for _ in range(2))
        times = []
        for _ in range(7):
            began = time.perf_counter()
            torch.nn.functional.linear(x, w)
            times.append(time.perf_counter() - began)
        return min(times)

    return seconds(torch.float32) > 1.5 * seconds(torch.bfloat16)
