"""What was learnt, added to a model's own weights, and a whole model written as a plain Transformers folder."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from lora_a2.core.types import Adapter, BaseDelta, weight_name
from lora_a2.model.checkpoint import quiet
from lora_a2.system.files import seal, write_atomic


@torch.no_grad()
def merge(module: nn.Module, adapter: Adapter, base: BaseDelta) -> None:
    """Adds `base` + scaling · B A to the weights of a backbone, in place; to those of layers that keep theirs as (d_in, d_out), as
    GPT-2's do, transposed."""
    changes = {name: np.asarray(change, np.float32) for name, change in base.items()}
    for name, f in adapter.pair.factors.items():
        product, key = np.float32(adapter.scaling) * (f.B @ f.A), weight_name(name)
        changes[key] = changes[key] + product if key in changes else product
    turned = {weight_name(name) for name in adapter.factors if isinstance(module.get_submodule(name), Conv1D)}
    for name, change in changes.items():
        weight = module.get_parameter(name)
        weight.add_(torch.from_numpy(change.T if name in turned else change).to(weight.device))


def write_folder(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, files: Mapping[str, bytes]
) -> None:
    """Model, tokenizer, these files and the digests of all; the folder appears once it is complete, in place of a former one."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with quiet():
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
    for name, data in files.items():
        write_atomic(partial / name, data)
    seal(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
