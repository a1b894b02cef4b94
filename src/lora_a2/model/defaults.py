"""Hyperparameters that suit a model, where the user gives none.

The paper's are for RoBERTa-base: learning rate 5e-4, scale of the frozen head not stated. How those for MiniLM were found
stands in docs/results.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from lora_a2.methods.base import Method
from lora_a2.model.names import canonical


@dataclass(frozen=True)
class ModelDefaults:
    """`learning_rate` of A; `head_scale`, standard deviation of the seeded head's weights times √H."""

    learning_rate: float = 5e-4
    head_scale: float = 1.0


_KNOWN = {"all-MiniLM-L6-v2": ModelDefaults(learning_rate=5e-3)}


def model_defaults(model: str) -> ModelDefaults:
    """The defaults for the model called `model`, those of the paper if it is not known."""
    return _KNOWN.get(canonical(model), ModelDefaults())


def usual_learning_rate(model: str, method: Method) -> float:
    """The learning rate of A if none is given."""
    return model_defaults(model).learning_rate * method.learning_rate_scale
