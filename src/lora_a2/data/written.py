"""placeholder of the contract"""

from __future__ import annotations

from dataclasses import dataclass

from lora_a2.data.partition import IntArray


@dataclass(frozen=True)
class Turn:
    role: str
    content: str


@dataclass(frozen=True)
class Sample:
    turns: tuple[Turn, ...] = ()
    text: str | None = None
    references: tuple[str, ...] = ()


@dataclass(frozen=True)
class Samples:
    samples: tuple[Sample, ...]
    clients: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def take(self, rows: IntArray) -> Samples:
        return Samples(
            tuple(self.samples[i] for i in rows),
            None if self.clients is None else tuple(self.clients[i] for i in rows),
        )


@dataclass(frozen=True)
class WrittenData:
    name: str
    train: Samples
    test: Samples
    notes: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        return ""
