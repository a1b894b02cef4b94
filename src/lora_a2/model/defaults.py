"""Hyperparameters that suit a model, where the user gives none.

The paper's are for RoBERTa-base: learning rate 5e-4, scale of the frozen head not stated. How those for MiniLM were found
stands in docs/results.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from lora_a2.model.catalog import ALIASES


@dataclass(frozen=True)
class ModelDefaults:
    """`learning_rate` of A; `head_scale`, standard deviation of the seeded head's weights times √H."""

    learning_rate: float = 5e-4
    head_scale: float = 1.0


_KNOWN = {"all-MiniLM-L6-v2": ModelDefaults(learning_rate=5e-3)}


def model_defaults(model: str) -> ModelDefaults:
    """The defaults for the model called `model`, those of the paper if it is not known."""
    return _KNOWN.get(ALIASES.get(model, model), ModelDefaults())
