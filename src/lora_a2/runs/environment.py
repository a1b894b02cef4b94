"""What a run's result depends on besides its configuration, and when it began."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch

from lora_a2.data.written import DataSet
from lora_a2.engine.kernels import attention, skinny
from lora_a2.engine.precision import dtype_name
from lora_a2.model.pretrained import Model


def environment(model: Model, data: DataSet) -> dict[str, Any]:
    """Versions, machine, fingerprints of data and model, and the time, which is when the run begins."""
    packages = ("lora-a2", "torch", "transformers", "datasets", "numpy", "safetensors")
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "packages": {name: version(name) for name in packages},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "compiled_attention": attention.compiled(),
        "compiled_products": skinny.compiled(),
        "device": str(model.network.device),
        "dtype": dtype_name(model.network.dtype),
        "data": {
            "name": data.name,
            "train_examples": len(data.train),
            "test_examples": len(data.test),
            "label_names": list(data.label_names),
        },
        "data_sha256": data.fingerprint(),
        "model": model.name,
        "model_fingerprint": model.fingerprint,
        "model_revision": model.revision,
        "layout": model.layout.digest.hex(),
        "full_parameters": model.full_parameters,
    }
