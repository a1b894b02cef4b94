"""The configuration that a run directory holds. Nothing here imports PyTorch."""

from __future__ import annotations

from lora_a2.config.run import RunConfig, load_config, make_config
from lora_a2.runs.directory import RunDirectory


def config_of(run: RunDirectory, trust_remote_code: bool = False) -> RunConfig:
    """The configuration of a run, resolved. Whether code of its model may run is up to the caller, not to the file.

    Raises:
        ConfigError: the file is damaged.
    """
    return make_config(load_config(run.path / "config.toml"), {"trust_remote_code": trust_remote_code})
