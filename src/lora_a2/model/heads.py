"""The names of classification heads, known without PyTorch."""

from __future__ import annotations

HEADS = ("linear", "native")
FORMER_HEADS = {"frozen": False, "trained": True}
"""What --head once said of a linear head: whether it is trained."""
