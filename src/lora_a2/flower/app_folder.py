"""A folder that `flwr run` takes: the apps of this package with the configuration of one run."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import tomlkit

Value = str | int | float | bool

LICENSE = "Apache-2.0, see https://www.apache.org/licenses/LICENSE-2.0\n"


def write_app(folder: Path, config: Mapping[str, Value]) -> None:
    """Writes the app; `config` is what its ServerApp finds as the run's configuration, by kebab-case key."""
    release = version("lora-a2")
    document = {
        "project": {
            "name": "lora-a2-run",
            "version": "1.0.0",
            "description": "Federated LoRA fine-tuning",
            "license": {"file": "LICENSE"},
            "dependencies": [f"lora-a2[flower]=={release}"],
        },
        "tool": {
            "flwr": {
                "app": {
                    "publisher": "local",
                    "fab-format-version": 1,
                    "flwr-version-target": version("flwr"),
                    "components": {
                        "serverapp": "lora_a2.flower.server_app:app",
                        "clientapp": "lora_a2.flower.client_app:app",
                    },
                    "config": dict(config),
                }
            }
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "LICENSE").write_text(LICENSE)
    (folder / "pyproject.toml").write_text(tomlkit.dumps(document))
