"""The observer that tells trackers what a run does."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lora_a2.errors import RunError
from lora_a2.federation.observer import Observer, RunStart
from lora_a2.federation.records import RoundRecord
from lora_a2.tasks.base import PERSONAL
from lora_a2.tasks.registry import measured
from lora_a2.trackers.base import Parameter, TrackedRun, Tracker


class Tracking(Observer):
    """Passes everything on to `observer`, and to every tracker the figures of each round of this process.

    Raises:
        RunError: from `started`, where a tracker cannot be opened; no round has been trained then.
    """

    def __init__(self, observer: Observer, names: Sequence[str], path: Path, config: Mapping[str, Any]) -> None:
        self._observer, self._names, self._path, self._config = observer, names, path, config
        self._trackers: dict[str, Tracker] = {}
        self._first_round = 1
        self._uploaded = self._downloaded = 0

    def started(self, start: RunStart) -> None:
        """Opens the trackers."""
        self._observer.started(start)
        self._first_round = start.first_round
        run = TrackedRun(self._path, parameters(self._config), start.first_round)
        for name in self._names:
            module = importlib.import_module(f"lora_a2.trackers.{name}")
            try:
                self._trackers[name] = module.open_tracker(run)
            except Exception as error:
                raise RunError(
                    f"{name} cannot be reported to: {_line(error)}. Put that right, then: lora-a2 resume {self._path}"
                ) from error

    def clients_done(self, server_round: int, done: int, cohort: int) -> None:
        """Passed on."""
        self._observer.clients_done(server_round, done, cohort)

    def baselines_done(self, done: int, total: int) -> None:
        """Passed on."""
        self._observer.baselines_done(done, total)

    def note(self, text: str) -> None:
        """Passed on."""
        self._observer.note(text)

    def round_done(self, record: RoundRecord) -> None:
        """Rounds of before count in the sums only: trackers have them already."""
        self._observer.round_done(record)
        self._uploaded += record.uploaded_bytes
        self._downloaded += record.downloaded_bytes
        if record.server_round >= self._first_round:
            traffic = {"traffic/uploaded_bytes": self._uploaded, "traffic/downloaded_bytes": self._downloaded}
            figures = {**round_figures(record), **traffic}
            self._tell(lambda tracker: tracker.log(record.server_round, figures))

    def finished(self, summary: Mapping[str, Any]) -> None:
        """The run is complete; `summary` is that of `RunSummary.to_json`, of which the numbers are logged."""
        numbers = {name: float(value) for name, value in summary.items() if isinstance(value, int | float)}
        self._tell(lambda tracker: tracker.finish(numbers))

    def close(self) -> None:
        """Closes the trackers."""
        self._tell(lambda tracker: tracker.close())

    def _tell(self, what: Callable[[Tracker], None]) -> None:
        """A tracker that fails, as when its server has gone, must not cost the run: the user is told, and it is left out."""
        for name, tracker in list(self._trackers.items()):
            try:
                what(tracker)
            except Exception as error:
                del self._trackers[name]
                self.note(f"{name} failed and is not reported to any more: {_line(error)}")


@contextmanager
def tracking(observer: Observer, names: Sequence[str], path: Path, config: Mapping[str, Any]) -> Iterator[Tracking]:
    """A `Tracking` for the length of a run."""
    trackers = Tracking(observer, names, path, config)
    try:
        yield trackers
    finally:
        trackers.close()


def round_figures(record: RoundRecord) -> dict[str, float]:
    """A round's figures by name: `eval/…` in rounds with an evaluation, `train/…`, `seconds/…`."""
    task, metrics = measured(record.metrics), record.metrics
    names = () if task is None else (*task.measures, "client_mean", "client_worst_tenth")
    evaluated = {name: metrics.get(name) for name in names}
    evaluated |= {f"{PERSONAL}_{name}": metrics.get(PERSONAL, {}).get(name) for name in names}
    return {
        **{f"eval/{name}": float(value) for name, value in evaluated.items() if value is not None},
        "train/loss": record.train_loss,
        "train/clients": float(len(record.clients)),
        "train/refused": float(len(record.refused)),
        **{f"seconds/{phase}": seconds for phase, seconds in record.seconds.items()},
    }


def parameters(config: Mapping[str, Any]) -> dict[str, Parameter]:
    """The values of a configuration as trackers take them; lists become text."""

    def plain(value: Any) -> Parameter:
        return value if isinstance(value, str | int | float) else ",".join(map(str, value))

    return {name: plain(value) for name, value in config.items() if value is not None}


def _line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__).removesuffix(".")
