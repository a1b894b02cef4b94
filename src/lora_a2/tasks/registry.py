"""The tasks by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lora_a2.core.names import known_name
from lora_a2.errors import ConfigError
from lora_a2.settings.task import CLASSIFICATION
from lora_a2.tasks import causal_lm, classification
from lora_a2.tasks.base import Task

DEFAULT_TASK = CLASSIFICATION
TASKS: Mapping[str, Task] = {task.name: task for task in (classification.TASK, causal_lm.TASK)}
"""Name → task, in the order that users read."""


def get_task(name: str) -> Task:
    """The task called `name`.

    Raises:
        ConfigError: there is none.
    """
    name = known_name(name, TASKS)
    if name not in TASKS:
        raise ConfigError(f"Unknown task {name!r}: choose one of {', '.join(TASKS)}.")
    return TASKS[name]


def measured(metrics: Mapping[str, Any]) -> Task | None:
    """The task whose primary metric is among these of an evaluation; None: there was no evaluation."""
    return next((task for task in TASKS.values() if task.primary in metrics), None)


def task_of(evaluations: Iterable[Mapping[str, Any]], config: Mapping[str, Any] | None = None) -> Task:
    """The task of a run: of the metrics of its rounds, or else of its configuration by kebab-case key.

    Of a run that says neither it is the usual one.

    Raises:
        ConfigError: the configuration names a task that is not known.
    """
    found = next(filter(None, map(measured, evaluations)), None)
    return found or get_task(str((config or {}).get("task") or DEFAULT_TASK))
