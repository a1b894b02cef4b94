"""A folder that `flwr run` takes: the apps of this package with the configuration of one run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import tomlkit

from lora_a2.system.files import write_atomic

Value = str | int | float | bool


def write_app(folder: Path, config: Mapping[str, Value]) -> None:
    """Writes the app; `config` is its run configuration, by kebab-case key."""
    app = {
        "publisher": "local",
        "components": {
            "serverapp": "lora_a2.flower.server_app:app",
            "clientapp": "lora_a2.flower.client_app:app",
        },
        "config": dict(config),
    }
    project = {
        "name": "lora-a2-run",
        "version": "1.0.0",
        "description": "Federated LoRA fine-tuning",
        "license": "Apache-2.0",
        "dependencies": [],  # Flower would install them anew for every run
    }
    folder.mkdir(parents=True, exist_ok=True)
    document = tomlkit.dumps({"project": project, "tool": {"flwr": {"app": app}}})
    write_atomic(folder / "pyproject.toml", document.encode())
