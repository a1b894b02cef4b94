"""What tells two sets of base weights apart, wherever they were loaded from."""

from __future__ import annotations

import hashlib
import json

import torch
from torch import nn

from lora_a2.errors import RunError


def unused(weight: str) -> bool:
    """Whether a weight of a backbone is of its pooling layer, which has no part in token vectors."""
    return weight.startswith("pooler.")


def fingerprint(module: nn.Module) -> str:
    """64 hex digits (SHA-256) over names, shapes and values of all used weights and kept buffers, in the order of their names.

    Taken of a backbone as `AutoModel` gives it, in float32: it does not depend on files, on their number type, or on the
    machine. All values count; a processor hashes about a gigabyte a second, less than it takes to read them.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted((n, t) for n, t in module.state_dict().items() if not unused(n)):
        values = tensor.detach().cpu().contiguous()
        digest.update(json.dumps([name, list(values.shape), str(values.dtype)]).encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def require_same(model: str, found: str, expected: object, owner: str) -> None:
    """Compares the weights of a model with those that `owner`, a run or an adapter, was trained on.

    Raises:
        RunError: they are others.
    """
    if found != expected:
        raise RunError(
            f"The weights of {model} are not those that {owner} was trained on (fingerprint {found[:12]}; expected "
            f"{str(expected)[:12]}): restore them, or train anew."
        )
