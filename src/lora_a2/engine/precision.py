"""Which device and which dtype: by option, or by what the machine has."""

from __future__ import annotations

import copy
import re

import torch
from transformers import PreTrainedModel

from lora_a2.errors import ModelError
from lora_a2.system.machine import processor_flags

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_BFLOAT16_FLAGS = frozenset({"amx_bf16", "avx512_bf16", "bf16"})
"""A processor with one of these multiplies bfloat16 itself: x86's two, and ARM's."""


def pick_device(name: str) -> torch.device:
    """The device called `name`; "auto": CUDA if there is one, else the CPU.

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
    """The dtype called `name`; "auto": bfloat16 where the device has instructions for its products.

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


def _bfloat16_pays(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 itself. Nothing is timed: the same machine always answers the same."""
    if device.type == "cpu":
        library = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
        return library and not processor_flags().isdisjoint(_BFLOAT16_FLAGS)
    module = torch.get_device_module(device)
    if not hasattr(module, "is_bf16_supported"):  # Apple's, for one
        return False
    with module.device(device):  # it is asked of the current one
        return bool(module.is_bf16_supported(including_emulation=False))
