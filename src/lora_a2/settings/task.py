"""The choice of the task, on which other options' defaults and effects depend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from lora_a2.settings.options import Effect, Options, among, option

CLASSIFICATION, CAUSAL_LM = "classification", "causal-lm"
TASKS = (CLASSIFICATION, CAUSAL_LM)
"""Names of the tasks, in the order that users read."""

# Where the data are still to tell the task, nothing is refused for its sake.
LABELLING = Effect(lambda c: c.task in (None, CLASSIFICATION), f"--task {CLASSIFICATION}")
WRITING = Effect(lambda c: c.task in (None, CAUSAL_LM), f"--task {CAUSAL_LM}")


def by_task(labelling: Any, writing: Any) -> Any:
    """A default that depends on the task."""

    def chosen(given: Mapping[str, Any]) -> Any:
        return writing if given.get("task") == CAUSAL_LM else labelling

    return chosen


class TaskChoice(Options):
    """What the model is fine-tuned for."""

    task: Annotated[str, among(TASKS)] | None = option(
        None,
        "Task",
        "What the model is fine-tuned for: to label texts, or to write.",
        metavar="|".join(TASKS),
        shown="what the columns of the data are for",
        reach="nodes",
    )
