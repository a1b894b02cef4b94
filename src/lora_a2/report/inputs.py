"""The runs of a report: run directories, and those below the folders of comparisons and sweeps."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from lora_a2.analysis.convergence import curve
from lora_a2.analysis.record import RunRecord, load_run
from lora_a2.errors import RunError
from lora_a2.methods import METHODS


@dataclass(frozen=True)
class Run:
    """A run and what the page calls it."""

    name: str
    record: RunRecord

    @cached_property
    def curve(self) -> pd.DataFrame:
        """Figures by server round, see `analysis.convergence.curve`."""
        return curve(self.record)

    @property
    def rounds_planned(self) -> int:
        """As configured; fewer are there while it runs."""
        return int(self.record.config["num-server-rounds"])

    @property
    def metrics(self) -> dict[str, Any]:
        """Those of the last evaluation; empty before the first."""
        found = [line["metrics"] for line in self.record.rounds if line["metrics"]]
        return dict(found[-1]) if found else {}

    @property
    def full_bytes(self) -> int | None:
        """What full fine-tuning would have uploaded in the same rounds; None where the run does not know its model's size."""
        size = self.record.environment.get("full_parameters")
        return None if size is None else 4 * int(size) * sum(len(line["clients"]) for line in self.record.rounds)

    @property
    def is_full(self) -> bool:
        """Whether this is full fine-tuning itself."""
        method = METHODS.get(self.record.method)
        return method is not None and method.full


def find_runs(paths: Iterable[Path]) -> list[Run]:
    """All runs at and below `paths` that have a finished round, by path.

    Raises:
        RunError: a path without a run, a damaged run, or no finished round anywhere.
    """
    folders: dict[Path, None] = {}
    for path in paths:
        found = sorted(
            file.parent for file in path.rglob("config.toml") if (file.parent / "environment.json").is_file()
        )
        if not found:
            raise RunError(f"{path} holds no run: expected config.toml and environment.json in it or below it.")
        folders |= {folder.resolve(): None for folder in found}
    records = [record for folder in folders if (record := load_run(folder)).rounds]
    if not records:
        raise RunError(f"{next(iter(folders))} has no finished round yet: there is nothing to show.")
    return [Run(name, record) for name, record in zip(_names([r.path for r in records]), records, strict=True)]


def _names(paths: list[Path]) -> list[str]:
    """Paths from the deepest folder that holds all; a single run is called by its folder's name."""
    common = Path(os.path.commonpath([path.parent for path in paths]))
    return [path.relative_to(common).as_posix() for path in paths]
