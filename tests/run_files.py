"""What a run is given, and what its directory holds in a form that can be compared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import lora_a2.simulation


def run_options(model: Path, data: Path) -> dict[str, Any]:
    """Options of a run that takes a second."""
    return {
        "data": str(data),
        "model": str(model),
        "dtype": "float32",
        "num_clients": 4,
        "partitioner": "iid",
        "fraction_train": 0.75,
        "num_server_rounds": 3,
        "local_epochs": 1,
        "batch_size": 4,
        "learning_rate": 5e-3,
        "r": 2,
    }


def score_rounds(monkeypatch: pytest.MonkeyPatch, accuracies: Sequence[float]) -> None:
    """Has every evaluation of a run find the accuracy of its round."""
    real = lora_a2.simulation.evaluate_state

    def evaluate(*arguments: Any) -> dict[str, Any]:
        found, state = real(*arguments), arguments[3]
        for metrics in (found, *([found["personal"]] if "personal" in found else [])):
            metrics["accuracy"] = accuracies[state.server_round - 1]
        return found

    monkeypatch.setattr(lora_a2.simulation, "evaluate_state", evaluate)


def contents(run: Path) -> dict[str, Any]:
    """Every file of a run by its path; the ledger and the environment without their times, the configuration without its own
    path, and no digest of these."""
    files: dict[str, Any] = {}
    for path in sorted(p for p in run.rglob("*") if p.is_file()):
        name = path.relative_to(run).as_posix()
        data = path.read_bytes()
        if name == "rounds.jsonl":
            assert data.endswith(b"\n")
            rows = [json.loads(line) for line in data.splitlines()]
            assert all(row.pop("seconds") for row in rows)
            files[name] = rows
        elif name == "config.toml":
            files[name] = [line for line in data.decode().splitlines() if not line.startswith("output-dir")]
        elif name == "environment.json":
            files[name] = [line for line in data.splitlines() if b'"started":' not in line]
        elif name == "SHA256SUMS":
            lines = data.decode().splitlines()
            files[name] = sorted(line for line in lines if not line.endswith(("config.toml", "environment.json")))
        elif name == "rounds.sha256":
            files[name] = data.count(b"\n")
        else:
            files[name] = data
    return files
