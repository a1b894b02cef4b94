"""The names of the tasks, known without PyTorch."""

from __future__ import annotations

CLASSIFICATION, CAUSAL_LM = "classification", "causal-lm"
NAMES = (CLASSIFICATION, CAUSAL_LM)
"""In the order that users read."""
