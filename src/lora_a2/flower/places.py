"""Which node is which client: a partition belongs to a node's key for the whole run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lora_a2.errors import RunError
from lora_a2.system.files import read_sealed, write_sealed


@dataclass(frozen=True)
class NodeProfile:
    """What a node states about itself. `partition` is the one it asks for."""

    partition: int
    num_partitions: int
    num_examples: int
    num_test_examples: int


class Places:
    """The partitions 0 … `total` − 1 and their owners.

    A node gets the partition that it asks for if that has no owner, otherwise the first without one; so a node that asks for
    another's partition does not keep the other out. If all have owners, a node substitutes for an owner that is offline, until
    that one is back. A node may never state more examples than it first did.

    Args:
        total: the number of partitions; None: not known yet.
        path: the file that stores the owners; None: no file.
    """

    def __init__(self, total: int | None = None, path: Path | None = None) -> None:
        self.total, self._path = total, path
        self._owners: dict[int, str] = {}
        self._first: dict[str, NodeProfile] = {}
        if path is not None and path.exists():
            self._load(path)

    def keep(self, path: Path) -> None:
        """Stores the owners in this file from now on."""
        self._path = path
        self._save()

    def admit(self, identity: str, profile: NodeProfile) -> NodeProfile:
        """A node's profile, with no more examples than it first stated."""
        first = self._first.setdefault(identity, profile)
        return replace(
            profile,
            num_examples=min(profile.num_examples, first.num_examples),
            num_test_examples=min(profile.num_test_examples, first.num_test_examples),
        )

    def assign(self, present: Mapping[int, tuple[str, NodeProfile]]) -> dict[int, int]:
        """Partition → node, for as many nodes as there are partitions. `present`: node → its identity and profile."""
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
