"""A labelled data set in memory: texts, class numbers and, if the data say so, whose each example is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from lora_a2.core.shown import count, few, shown
from lora_a2.data.partition import IntArray


@dataclass(frozen=True)
class Examples:
    """n examples: texts, labels (n,) int64 in 0..C-1, and n client names or None."""

    texts: tuple[str, ...]
    labels: IntArray
    clients: tuple[str, ...] | None

    def __repr__(self) -> str:
        return shown(
            self,
            count(len(self), "text"),
            count(len(set(self.labels.tolist())), "label"),
            "" if self.clients is None else count(len(set(self.clients)), "client"),
        )

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: IntArray) -> Examples:
        """The examples at `rows` (m,), in that order."""
        return Examples(
            texts=tuple(self.texts[i] for i in rows),
            labels=self.labels[rows],
            clients=None if self.clients is None else tuple(self.clients[i] for i in rows),
        )


@dataclass(frozen=True)
class LabelledData:
    """Training and test set over the same C classes, named by `label_names`.

    `notes` are what the user should know of them; `columns` what was used: text, label, client → the column's name.
    """

    name: str
    train: Examples
    test: Examples
    label_names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return shown(
            self, repr(self.name), f"train={self.train!r}", f"test={self.test!r}", f"labels: {few(self.label_names)}"
        )

    def fingerprint(self) -> str:
        """64 hex digits (SHA-256) over every text, label, client and label name, in order.

        A run compares it on resuming. The data set's own name is left out: a file that only moved is the same data.
        """
        digest = hashlib.sha256(json.dumps(self.label_names).encode())
        for part in (self.train, self.test):
            digest.update(json.dumps([part.texts, part.labels.tolist(), part.clients]).encode())
        return digest.hexdigest()
