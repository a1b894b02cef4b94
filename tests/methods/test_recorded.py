"""Every method's result is, byte for byte, what the release before made of the same seed.

`recorded.json` holds it for one processor and one release of PyTorch and NumPy; on others sums are rounded otherwise, and
values are compared. `RECORD=1 pytest tests/methods/test_recorded.py` records anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from lora_a2.config.run import RunConfig
from lora_a2.federation.observer import Observer
from lora_a2.runs.jobs import launch

RECORD = Path(__file__).with_name("recorded.json")
CASES: dict[str, dict[str, Any]] = {
    "lora-a2": {"rank_budget": (1, 2, 1, 2)},
    "lora-a2 reuse": {"method": "lora-a2", "probe": "reuse", "local_epochs": 2, "head": "trained"},
    "lora-a2 gradient": {"method": "lora-a2", "probe": "gradient", "criterion": "magnitude", "wire_dtype": "fp16"},
    "lora-a2 frozen": {"method": "lora-a2", "alternating": False, "rank_budget": 1},
    "lora-a2 noise": {"method": "lora-a2", "laplace_epsilon": 50.0, "rank_budget": 1},
    "fl-lora": {"head": "trained", "weight_decay": 0.1},
    "ffa-lora": {},
    "rolora": {"wire_dtype": "fp16"},
    "flexlora": {"r": 4, "rank_budget": (1, 2, 3, 4)},
    "hetlora": {"r": 4, "rank_budget": (1, 2, 3, 4)},
    "flora": {"r": 4, "rank_budget": (1, 2, 3, 4)},
    "fedex-lora": {"head": "trained"},
    "fedsa-lora": {},
    "fedsvd": {},
    "flasc": {"head": "trained"},
    "full": {"learning_rate": 1e-3},
}
SAMPLED = 32


def machine() -> list[str]:
    """What bytes depend on beside the seed."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().split("\n\n")[0].splitlines() if info.exists() else []
    kept = [line.partition(":")[2].strip() for line in lines if line.startswith(("vendor_id", "cpu family", "model\t"))]
    return [*kept, torch.__version__, np.__version__]


def results(case: str, options: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Digest, and some values, of all that came of a run."""
    config = RunConfig(**{**options, "method": case, "output_dir": str(folder), "num_server_rounds": 4, **CASES[case]})
    launch(config, Observer())
    digest, values = hashlib.sha256(), []
    for path in sorted(folder.glob("*/**/*.safetensors")):
        if path.parts[len(folder.parts)] in ("adapter", "model", "personal"):
            for name, tensor in sorted(load_file(path).items()):
                digest.update(name.encode() + tensor.tobytes())
                values.append(tensor.ravel())
    flat = np.concatenate(values).astype(np.float64)
    return {"sha256": digest.hexdigest(), "values": flat[:: len(flat) // SAMPLED + 1].tolist()}


@pytest.mark.parametrize("case", CASES)
def test_a_result_is_what_it_was(case: str, options: dict[str, Any], tmp_path: Path) -> None:
    recorded = json.loads(RECORD.read_text())
    found = results(case, options, tmp_path / "run")
    if os.environ.get("RECORD"):
        cases = {**recorded["cases"], case: found}
        recorded = {"machine": machine(), "cases": cases}
        RECORD.write_text(json.dumps(recorded, indent=1) + "\n")
    if recorded["machine"] == machine():
        assert found["sha256"] == recorded["cases"][case]["sha256"]
    # AdamW moves a value whose gradient is nearly zero either way, so a few may differ by whole steps.
    apart = np.abs(np.subtract(found["values"], recorded["cases"][case]["values"]))
    assert np.median(apart) < 1e-3
