"""What a run understood of its data, to be read before it trains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lora_a2.data.written import DataSet
from lora_a2.engine.work import TokenizedExamples
from lora_a2.federation.population import Client, TokenCounts


def understood(
    data: DataSet, clients: Sequence[Client], tokens: TokenCounts, seconds: float
) -> tuple[tuple[str, str], ...]:
    """Names and values: rows, columns, classes or learnt tokens, clients, cut texts, and the `seconds` so far.

    Of cut texts it says only that there are none: the notes say how many.
    """
    columns = ", ".join(f"{role} '{name}'" for role, name in data.columns.items())
    sizes = sorted(len(client.train) for client in clients)
    return (
        ("Examples", f"{len(data.train):,} to train with, {len(data.test):,} to test with"),
        *([("Columns", columns)] if columns else []),
        _classes(data) if data.label_names else _learnt(clients),
        ("Clients", f"{len(clients):,}, of {sizes[0]:,} to {sizes[-1]:,} training examples"),
        *([] if tokens.num_cut else [("Cut texts", f"none, at {tokens.max_length:,} tokens")]),
        ("Loaded in", f"{seconds:.0f} s"),
    )


def _classes(data: DataSet) -> tuple[str, str]:
    """How many, the largest and the smallest in training."""
    counts = np.bincount(data.train.labels, minlength=len(data.label_names))
    most, least = int(counts.argmax()), int(counts.argmin())
    largest, smallest = (f"'{data.label_names[k]}' ({counts[k]:,})" for k in (most, least))
    return "Classes", f"{len(counts):,}, from {largest} to {smallest} training examples"


def _learnt(clients: Sequence[Client]) -> tuple[str, str]:
    """How many tokens have a loss."""
    train, test = (
        sum(_count(part) for part in parts) for parts in zip(*((c.train, c.test) for c in clients), strict=True)
    )
    return "Learnt tokens", f"{train:,} in training, {test:,} in test"


def _count(examples: TokenizedExamples) -> int:
    return sum(int(np.count_nonzero(labels >= 0)) for labels in examples.labels)  # those below 0 are ignored
