"""What tells two sets of base weights apart, wherever they were loaded from."""

from __future__ import annotations

import hashlib
import json

import torch
from torch import nn


def fingerprint(module: nn.Module) -> str:
    """64 hex digits (SHA-256) over names, shapes and values of all weights and kept buffers, in the order of their names.

    Taken of a backbone as `AutoModel` gives it, in float32: it does not depend on files, on their number type, or on the
    machine. All values count; a processor hashes about a gigabyte a second, less than it takes to read them.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(json.dumps([name, list(values.shape), str(values.dtype)]).encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
