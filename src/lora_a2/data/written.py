"""Texts to learn to write."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Turn:
    """One message of a chat; `role` is "system", "user", "assistant", or another that the chat template knows."""

    role: str
    content: str
