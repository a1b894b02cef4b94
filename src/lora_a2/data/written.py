"""A data set to learn to write from, in memory: chats or plain texts and, if the data say so, whose each is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import numpy as np

from lora_a2.core.shown import count, shown
from lora_a2.data.labelled import Examples, LabelledData
from lora_a2.data.partition import IntArray


@dataclass(frozen=True)
class Turn:
    """What one side says in a chat; `role` is "system", "user" or "assistant", or another that a template knows."""

    role: str
    content: str


@dataclass(frozen=True)
class Sample:
    """One example: a chat, or a text.

    Attributes:
        turns: a chat; a prompt and its answer are one of two turns.
        text: plain text, all of which is learnt; None: it is a chat.
        references: right answers besides the last turn, to evaluate with.
    """

    turns: tuple[Turn, ...] = ()
    text: str | None = None
    references: tuple[str, ...] = ()


@dataclass(frozen=True)
class Samples:
    """n examples, and n client names or None."""

    samples: tuple[Sample, ...]
    clients: tuple[str, ...] | None = None

    def __repr__(self) -> str:
        return shown(
            self, count(len(self), "example"), "" if self.clients is None else count(len(set(self.clients)), "client")
        )

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def labels(self) -> IntArray:
        """(n,) zeros: to who splits by classes, they are all of one."""
        return np.zeros(len(self), np.int64)

    def take(self, rows: IntArray) -> Samples:
        """The examples at `rows` (m,), in that order."""
        return Samples(
            tuple(self.samples[i] for i in rows),
            None if self.clients is None else tuple(self.clients[i] for i in rows),
        )


@dataclass(frozen=True)
class WrittenData:
    """Training and test set.

    `notes` are what the user should know of them; `columns` what was used: prompt, answer, chat, text, references, client → the
    column's name.
    """

    name: str
    train: Samples
    test: Samples
    notes: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return shown(self, repr(self.name), f"train={self.train!r}", f"test={self.test!r}")

    @property
    def label_names(self) -> tuple[str, ...]:
        """There are none."""
        return ()

    def fingerprint(self) -> str:
        """64 hex digits (SHA-256) over every example and client, in order; as `LabelledData.fingerprint`."""
        digest = hashlib.sha256(b"written")
        for part in (self.train, self.test):
            digest.update(json.dumps([[asdict(sample) for sample in part.samples], part.clients]).encode())
        return digest.hexdigest()


DataSet = LabelledData | WrittenData
"""To label with, or to write like."""
Part = Examples | Samples
"""A training or a test set, or some of it."""
