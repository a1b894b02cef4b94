"""Where a run's figures go besides its run directory: experiment trackers, each imported only if it is used.

A tracker is one module of this package, with `open_tracker`, and one row of `TRACKERS`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from types import MappingProxyType

from lora_a2.core.names import known_name
from lora_a2.errors import ConfigError
from lora_a2.system.invocation import installer

TRACKERS: Mapping[str, str] = MappingProxyType({"tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wandb"})
"""Name → the package that it needs. The name is that of the extra and of the module here too."""


def known_trackers(names: Iterable[str]) -> tuple[str, ...]:
    """The names without repetitions, in their order; "none" stands for none, as in Transformers.

    Raises:
        ConfigError: an unknown one.
    """
    given = (known_name(name, (*TRACKERS, "none")) for name in names)
    wanted = tuple(dict.fromkeys(name for name in given if name != "none"))
    for name in wanted:
        if name not in TRACKERS:
            raise ConfigError(f"{name!r} is not a tracker; choose from {', '.join(TRACKERS)}.")
    return wanted


def require_trackers(names: Iterable[str]) -> None:
    """Refuses trackers whose package is not installed.

    Raises:
        ConfigError: it is not; the message names the extra.
    """
    for name in names:
        if find_spec(TRACKERS[name]) is None:
            raise ConfigError(f"report-to: {name} is not installed; run: {installer(name)}")
