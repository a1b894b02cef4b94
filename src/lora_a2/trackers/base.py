"""What a tracker can do, and what it is told when it is opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lora_a2.system.files import read_sealed, write_sealed

Parameter = str | int | float | bool


@dataclass(frozen=True)
class TrackedRun:
    """A run as a tracker sees it.

    Attributes:
        path: the run directory; its name is the run's.
        parameters: the configuration.
        first_round: where this process begins; above 1 the tracker's own run is continued.
    """

    path: Path
    parameters: Mapping[str, Parameter]
    first_round: int

    def load(self, name: str) -> dict[str, Any]:
        """What the tracker `name` saved here; empty at first."""
        file = self._file(name)
        return read_sealed(file) if file.exists() else {}

    def save(self, name: str, values: Mapping[str, str]) -> None:
        """Keeps what the tracker `name` needs to continue its run."""
        self._file(name).parent.mkdir(exist_ok=True)
        write_sealed(self._file(name), values)

    def _file(self, name: str) -> Path:
        return self.path / "trackers" / f"{name}.json"


class Tracker(Protocol):
    """An open run of a tracker. Names of figures have slashes: `eval/accuracy`."""

    def log(self, server_round: int, values: Mapping[str, float]) -> None:
        """The figures of a round."""

    def finish(self, summary: Mapping[str, float]) -> None:
        """The figures of the whole run, once it is complete."""

    def close(self) -> None:
        """Always called last, after an interruption too; the run can be continued later unless it is finished."""
