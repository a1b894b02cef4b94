"""How far a run is: totals, time left, and numbers as people read them. No dependencies."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lora_a2.tasks.registry import measured

if TYPE_CHECKING:
    from lora_a2.federation.records import RoundRecord
    from lora_a2.tasks.base import Task

Clock = Callable[[], float]
_BARS = "▁▂▃▄▅▆▇█"
_TREND = 24


def human_bytes(count: float) -> str:
    """1234567 → '1.2 MB' (decimal units)."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.95:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def human_time(seconds: float) -> str:
    """75 → '1:15'; hours in front if there are some."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def percent(share: float) -> str:
    """0.7134 → '71.3 %'."""
    return f"{100 * share:.1f} %"


def saving(value: float) -> str:
    """99.93 → '99.93 %', with more digits where two would claim that all is saved."""
    for digits in range(2, 7):
        text = f"{value:.{digits}f}"
        if float(text) < 100:
            break
    return f"{text} %"


def sparkline(values: Iterable[float]) -> str:
    """Bars for the last values, the least lowest and the greatest highest; empty for fewer than two values."""
    shown = list(values)[-_TREND:]
    if len(shown) < 2:
        return ""
    low, span = min(shown), max(shown) - min(shown) or 1.0
    return "".join(_BARS[round((value - low) / span * (len(_BARS) - 1))] for value in shown)


@dataclass
class Progress:
    """A run so far. Rounds replayed on resuming count in the totals, not in the pace.

    Attributes:
        title: what runs.
        first_round: where this process starts training.
        num_server_rounds: of the whole run.
        cohort: clients of the present round.
        full_bytes_per_round: what full fine-tuning would upload, all clients of a round together.
        clock: seconds, from any start.
        began: when this process's first round began.
        scores: the task's primary metric after each evaluation; `task` is known from the first on.
    """

    title: str
    first_round: int
    num_server_rounds: int
    cohort: int
    full_bytes_per_round: int
    clock: Clock
    began: float
    rounds_done: int = 0
    clients_done: int = 0
    uploaded_bytes: int = 0
    downloaded_bytes: int = 0
    scores: list[float] = field(default_factory=list)
    task: Task | None = None

    def add(self, record: RoundRecord) -> None:
        """Takes in a finished round."""
        self.rounds_done, self.clients_done = record.server_round, 0
        self.uploaded_bytes += record.uploaded_bytes
        self.downloaded_bytes += record.downloaded_bytes
        if (task := measured(record.metrics)) is not None:
            self.task = task
            self.scores.append(float(record.metrics[task.primary]))
        if record.server_round < self.first_round:
            self.began = self.clock()

    @property
    def full_bytes(self) -> int:
        """What full fine-tuning would have uploaded so far."""
        return self.full_bytes_per_round * self.rounds_done

    @property
    def saved(self) -> str:
        """How much less than full fine-tuning has been uploaded; empty before the first round is done."""
        return saving(100 * (1 - self.uploaded_bytes / self.full_bytes)) if self.full_bytes else ""

    @property
    def time_left(self) -> str:
        """From the pace so far; empty while there is none."""
        part = self.clients_done / max(self.cohort, 1)
        own = self.rounds_done - self.first_round + 1 + part
        left = self.num_server_rounds - self.rounds_done - part
        return human_time((self.clock() - self.began) / own * max(left, 0)) if own > 0 else ""
