"""A Flower app for a user's own data, written from the templates beside this module.

Its project has no dependencies: Flower installs those of an app anew for every run, into an environment that hides the one with
lora-a2, PyTorch and the kernels in it. What the app needs is installed before, once, by whoever runs server or node.
"""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Mapping
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lora_a2.config.run import RunConfig
from lora_a2.errors import ConfigError
from lora_a2.flower.options import ServerOptions, app_fields
from lora_a2.settings.errors import kebab
from lora_a2.settings.task import CAUSAL_LM, CLASSIFICATION
from lora_a2.system.files import write_atomic


def default_config() -> dict[str, Any]:
    """Every key of the app's run configuration with its default; empty if the default depends on other keys."""
    config, options = RunConfig(), ServerOptions.model_validate({})
    values = {}
    for name in app_fields():
        plain = RunConfig.model_fields[name].default_factory is None and getattr(config, name) is not None
        values[kebab(name)] = getattr(config, name) if plain else ""
    return values | {kebab(name): getattr(options, name) for name in ServerOptions.model_fields}


def config_block(values: Mapping[str, Any]) -> str:
    """The lines below `[tool.flwr.app.config]`."""
    return "\n".join(f"{key} = {json.dumps(value)}" for key, value in values.items())


_DATA = {
    CLASSIFICATION: ("load_data", "A labelled data set", "for the class names and its own test examples"),
    CAUSAL_LM: ("load_written", "Prompts and answers, chats or texts", "for its own test examples"),
}
"""Task → how an app's data are loaded, what they are, and what a server wants of them."""


_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
_MOST_CHARACTERS = 32
"""Flower's limit for the name of an app."""


def app_names(folder: str) -> tuple[str, str]:
    """The names of an app in a folder of this name: the project's, with hyphens, as Flower wants it, and the package's, with
    underscores, as Python wants it.

    Raises:
        ConfigError: one of the two would not accept it, or a package of this name is installed.
    """
    project, package = folder.replace("_", "-"), folder.replace("-", "_")
    if not _NAME.fullmatch(folder) or len(folder) > _MOST_CHARACTERS or keyword.iskeyword(package):
        raise ConfigError(
            f"{folder!r} cannot name an app: use at most {_MOST_CHARACTERS} lower-case letters, digits and hyphens, such as "
            "tickets-app."
        )
    if (found := find_spec(package)) is not None and found.origin is not None:
        raise ConfigError(
            f"{folder!r} cannot name an app: its package {package} would hide the one that is installed; choose another name, "
            f"such as {project[: _MOST_CHARACTERS - 4]}-app."
        )
    return project, package


def write_app(folder: Path, task: str = CLASSIFICATION) -> list[Path]:
    """Writes a new app to `folder`, which is created and gives the app its name; returns its files.

    Raises:
        ConfigError: the folder's name cannot name an app (`app_names`), or the folder is not empty.
    """
    project, package = app_names(folder.absolute().name)
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty; choose a new folder.")
    values = default_config() | ({} if task == CLASSIFICATION else {"task": task})
    loader, what, why = _DATA[task]
    filled = {
        **{"@NAME@": project, "@PACKAGE@": package, "@CONFIG@": config_block(values)},
        **{"@LOADER@": loader, "@WHAT@": what, "@WHY@": why},
    }
    written = []
    for template in sorted(files("lora_a2.flower").joinpath("template").iterdir(), key=lambda t: t.name):
        target = template.name.removesuffix(".txt")
        path = folder / (package if target.endswith(".py") else "") / target
        path.parent.mkdir(parents=True, exist_ok=True)
        text = template.read_text(encoding="utf-8")
        for mark, value in filled.items():
            text = text.replace(mark, value)
        write_atomic(path, text.encode())
        written.append(path)
    return written
