"""Who is which client of a run: a partition belongs to a node's key, for as long as the run lasts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lora_a2.errors import RunError
from lora_a2.system.files import read_sealed, write_sealed


@dataclass(frozen=True)
class NodeProfile:
    """What a node states of itself. `partition` is the one it would like to be."""

    partition: int
    num_partitions: int
    num_examples: int
    num_test_examples: int


class Places:
    """The partitions 0 … `total` − 1 and whose they are.

    A node gets the partition that it asks for while that is nobody's, else the first that is; so whoever asks for another
    node's partition does not keep that one out. Where all are somebody's, a node stands in for one that is not there, until
    that one is back. What a node first stated of its examples is the most that it may state later.

    Args:
        total: how many partitions there are; None: not known yet.
        path: the file that remembers whose they are; None: no file.
    """

    def __init__(self, total: int | None = None, path: Path | None = None) -> None:
        self.total, self._path = total, path
        self._owners: dict[int, str] = {}
        self._first: dict[str, NodeProfile] = {}
        if path is not None and path.exists():
            self._load(path)

    def keep(self, path: Path) -> None:
        """Remembers whose they are in this file from now on."""
        self._path = path
        self._save()

    def admit(self, identity: str, profile: NodeProfile) -> NodeProfile:
        """What counts of a node's statement."""
        first = self._first.setdefault(identity, profile)
        return replace(
            profile,
            num_examples=min(profile.num_examples, first.num_examples),
            num_test_examples=min(profile.num_test_examples, first.num_test_examples),
        )

    def assign(self, present: Mapping[int, tuple[str, NodeProfile]]) -> dict[int, int]:
        """Partition → node, of the nodes that are there, each with its identity and profile, as far as there is room."""
        total = len(present) if self.total is None else self.total
        held = {identity: partition for partition, identity in self._owners.items()}
        result = {held[i]: node for node, (i, _) in sorted(present.items()) if i in held and held[i] < total}
        before = dict(self._owners)
        for node, (identity, profile) in sorted(present.items()):
            if identity in held:
                continue
            free = [p for p in (profile.partition, *range(min(total, len(before) + len(present)))) if p < total]
            place = next((p for p in free if p not in result and p not in self._owners), None)
            if place is not None and self.total is not None:
                self._owners[place] = identity
                self._first.setdefault(identity, profile)
            elif place is None:
                place = next((p for p in free if p not in result), None)
            if place is not None:
                result[place] = node
        if self._owners != before:
            self._save()
        return result

    def _save(self) -> None:
        if self._path is None:
            return
        rows = {
            str(partition): {"node": identity, **asdict(self._first[identity])}
            for partition, identity in sorted(self._owners.items())
        }
        write_sealed(self._path, rows)

    def _load(self, path: Path) -> None:
        for key, row in read_sealed(path).items():
            try:
                identity, stated = str(row.pop("node")), NodeProfile(**row)
                if not all(isinstance(value, int) for value in row.values()):
                    raise TypeError
                self._owners[int(key)], self._first[identity] = identity, stated
            except (AttributeError, KeyError, TypeError, ValueError):
                raise RunError(f"{path} is damaged: expected a partition, a node and what it stated.") from None
