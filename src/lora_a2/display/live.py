"""What a user sees of a run: a live display on a terminal, plain lines elsewhere, and the summary at the end.

Progress goes to standard error, so that standard output holds results only.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from lora_a2.analysis.baselines import COLUMNS
from lora_a2.display.console import PlainConsole, print_line, print_table, stdout_console
from lora_a2.display.progress import Clock, Progress, human_bytes, human_time, saving, sparkline
from lora_a2.display.tables import print_rows
from lora_a2.federation.observer import Observer, RunStart
from lora_a2.system.invocation import program
from lora_a2.system.text import visible
from lora_a2.tasks.registry import get_task, measured

if TYPE_CHECKING:
    from lora_a2.federation.records import RoundRecord
    from lora_a2.runs.summary import RunSummary
    from lora_a2.tasks.base import Task


_LONGEST_SILENCE = 30.0
"""Seconds without a line where there is something to say."""


class Display(Observer):
    """An observer that is entered for the length of a run. This one adds up and shows nothing."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self.output_dir: str | None = None
        self.progress: Progress | None = None
        self._clock = clock

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def show(self, progress: Progress, finished: RoundRecord | None) -> None:
        """Called after every change; `finished` is the round that just ended, if one did. For displays to override."""

    def started(self, start: RunStart) -> None:
        """Begins the progress."""
        everyone = start.clients_per_round == start.num_clients
        clients = (
            f"{start.num_clients} clients" if everyone else f"{start.clients_per_round} of {start.num_clients} clients"
        )
        title = f"{start.method}: {start.model} on {start.data}, {clients} a round"
        if start.first_round > 1:
            left = start.first_round <= start.num_server_rounds
            title += f", continued at round {start.first_round}" if left else ", finished already"
        self.output_dir = start.output_dir
        self.progress = Progress(
            title,
            start.first_round,
            start.num_server_rounds,
            start.clients_per_round,
            start.full_finetuning_bytes_per_round,
            self._clock,
            began=self._clock(),
        )
        self.show(self.progress, None)

    def clients_done(self, server_round: int, done: int, cohort: int) -> None:
        """Counts the clients of the round."""
        if self.progress is not None:
            self.progress.clients_done, self.progress.cohort = done, cohort
            self.show(self.progress, None)

    def round_done(self, record: RoundRecord) -> None:
        """Adds up, and tells of refused replies."""
        if self.progress is None:
            return
        self.progress.add(record)
        self.show(self.progress, record)
        if record.server_round >= self.progress.first_round:
            for client, reason in record.refused.items():
                self.note(f"Round {record.server_round}: the reply of client {client} was refused: {reason}")


class SilentDisplay(Display):
    """Shows nothing, for --quiet; notes are still worth a line."""

    def note(self, text: str) -> None:
        """Prints it to standard error."""
        print_line(PlainConsole(stderr=True), text)


class PlainDisplay(Display):
    """A line a round, and within long rounds one every half minute, for logs and pipes."""

    def __init__(self, console: Console | None = None, clock: Clock = time.monotonic) -> None:
        super().__init__(clock)
        self._console = console or PlainConsole(stderr=True)
        self._spoke = self._clock()

    def note(self, text: str) -> None:
        """Prints it."""
        self._spoke = self._clock()
        print_line(self._console, text)

    def loaded(self, rows: Sequence[tuple[str, str]]) -> None:
        """Prints them."""
        print_table(rows, self._console)

    def baselines_done(self, done: int, total: int) -> None:
        """A line for each."""
        if done:
            self.note(f"compared with: {done}/{total} models")

    def show(self, progress: Progress, finished: RoundRecord | None) -> None:
        """The title at first, then a line for every round that this process trained, and where a round is after a long silence."""
        if finished is None:
            if progress.rounds_done == progress.clients_done == 0:
                self.note(progress.title)
            elif progress.clients_done and self._clock() - self._spoke >= _LONGEST_SILENCE:
                self.note(
                    f"round {progress.rounds_done + 1}/{progress.num_server_rounds}: {progress.clients_done} of {progress.cohort} "
                    f"clients, {progress.time_left} left"
                )
        elif finished.server_round >= progress.first_round:
            self.note(_round_line(progress, finished))


class LiveDisplay(Display):
    """Bars for rounds and cohort, the score with its trend, traffic, time left; above them a line for each round that is done."""

    def __init__(self, console: Console | None = None, clock: Clock = time.monotonic) -> None:
        super().__init__(clock)
        self._console = console or PlainConsole(stderr=True)
        self._live = Live(
            _Waiting("Loading model and data …", clock), console=self._console, transient=True, refresh_per_second=4
        )

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def note(self, text: str) -> None:
        """Prints it above the display."""
        print_line(self._console, text)

    def loaded(self, rows: Sequence[tuple[str, str]]) -> None:
        """Prints them above the display."""
        print_table(rows, self._console)

    def baselines_done(self, done: int, total: int) -> None:
        """A bar of their own: the rounds are over."""
        grid = Table.grid(padding=(0, 2))
        grid.add_row(Spinner("dots"), Text("Compared with", style="dim"), _bar(done, total))
        self._live.update(grid)

    def show(self, progress: Progress, finished: RoundRecord | None) -> None:
        """Draws everything anew; rich limits how often it reaches the screen. What a round came to stays in the scrollback."""
        if finished is not None and finished.server_round >= progress.first_round:
            self.note(_round_line(progress, finished))
        self._live.update(render(progress))


class _Waiting:
    """A spinner with the time that has passed."""

    def __init__(self, text: str, clock: Clock) -> None:
        self._text, self._clock, self._began = text, clock, clock()
        self._spinner = Spinner("dots")

    def __rich__(self) -> RenderableType:
        self._spinner.update(text=f"{self._text} {human_time(self._clock() - self._began)}")
        return self._spinner


def render(progress: Progress) -> RenderableType:
    """The live display of a moment."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_row("Rounds", _bar(progress.rounds_done, progress.num_server_rounds))
    grid.add_row("Clients", _bar(progress.clients_done, progress.cohort))
    if progress.task is not None:
        task, latest = progress.task, progress.scores[-1]
        best = min(progress.scores, key=task.worse)
        best_text = "" if latest == best else f"   best {task.show(best)}"
        trend = sparkline(progress.scores)
        grid.add_row(f"Test {task.shown}", Text.assemble((task.show(latest), "bold green"), f"   {trend}{best_text}"))
    traffic = f"{human_bytes(progress.uploaded_bytes)} up   {human_bytes(progress.downloaded_bytes)} down"
    grid.add_row("Traffic", traffic)
    if progress.saved:
        grid.add_row("Full fine-tuning", f"{human_bytes(progress.full_bytes)} up   saved {progress.saved}")
    grid.add_row("Time left", progress.time_left or "…")
    return Group(Text(visible(progress.title), style="bold"), grid)


def print_summary(summary: RunSummary, console: Console | None = None) -> None:
    """The result of a run, where it is, and what to type next; to standard output."""
    console = console or stdout_console()
    task, worst = get_task(summary.task), summary.metrics["client_worst_tenth"]
    found = summary.metrics[task.primary]
    rows = [
        (f"Test {task.shown}", "-" if found is None else f"{task.show(found)}{_of(summary.metrics)}"),
        *task.lines(summary.metrics),
        ("Worst tenth of clients", "-" if worst is None else task.show(worst)),
        *([] if summary.personal is None else [("Personal models", task.show(summary.score))]),
        ("Uploaded", f"{human_bytes(summary.uploaded_bytes)} ({summary.uploaded_parameters:,} parameters)"),
        ("Downloaded", human_bytes(summary.downloaded_bytes)),
        *([("  for evaluation too", human_bytes(summary.evaluation_bytes))] if summary.evaluation_bytes else []),
        ("Aggregation", "exact" if summary.exact_aggregation else "not exact"),
        ("Full fine-tuning", f"{summary.full_finetuning_parameters:,} parameters uploaded"),
        ("Saved (uploads)", saving(summary.reduction_percent)),
        ("Server rounds", _rounds(summary)),
        ("Time", human_time(summary.seconds)),
        ("Peak memory", human_bytes(summary.peak_memory_bytes)),
        ("Run directory", summary.output_dir),
    ]
    print_table(rows, console)
    if summary.baselines is not None:
        print_baselines(summary.baselines, task, console)
    folder = shlex.quote(summary.output_dir)
    print_line(console, "")
    print_line(console, f'Next: {program()} {task.command} {folder} "your text"')
    print_line(console, f"      {program()} evaluate {folder}")


def print_baselines(found: Mapping[str, Any], task: Task, console: Console | None = None) -> None:
    """The clients' values beside those that they would have alone, tuned, or with all data in one place; their means first."""

    def row(name: str, examples: int, values: Mapping[str, Any]) -> dict[str, Any]:
        shown = {head: values[kind] for kind, head in COLUMNS.items() if kind in found["mean"]}
        return {"client": name, "num_test_examples": examples, **shown}

    rows = [row(each["client"], each["num_examples"], each) for each in found["clients"]]
    total = sum(each["num_examples"] for each in found["clients"])
    rows.insert(0, row(f"mean of {found['num_compared']}", total, found["mean"]))
    print_rows(
        f"Does joining help? {task.headline} on each client's test examples", rows, lambda _, v: task.show(v), console
    )


def _rounds(summary: RunSummary) -> str:
    kept = summary.kept_round
    early = ", ended early" if summary.ended_early else ""
    best = f"; the result is the best, round {kept}" if kept not in (None, summary.server_rounds) else ""
    return f"{summary.server_rounds}{early}{best}"


def _of(metrics: Mapping[str, Any]) -> str:
    number = metrics.get("num_examples")
    return "" if number is None else f" of {number:,} examples"


def choose_display(quiet: bool) -> Display:
    """Nothing if `quiet`; a live display if standard error is a terminal; else plain lines."""
    if quiet:
        return SilentDisplay()
    console = PlainConsole(stderr=True)
    return LiveDisplay(console) if console.is_terminal and not console.is_dumb_terminal else PlainDisplay(console)


def _bar(done: int, total: int) -> RenderableType:
    row = Table.grid(padding=(0, 2))
    row.add_row(ProgressBar(total=max(total, 1), completed=done, width=40), f"{done}/{total}")
    return row


def _round_line(progress: Progress, record: RoundRecord) -> str:
    task = measured(record.metrics)
    score = "" if task is None else f"{task.shown} {task.show(record.metrics[task.primary])}, "
    full = f" (full fine-tuning {human_bytes(progress.full_bytes)}, saved {progress.saved})" if progress.saved else ""
    return (
        f"round {record.server_round}/{progress.num_server_rounds}: {score}loss {record.train_loss:.3f}, "
        f"so far {human_bytes(progress.uploaded_bytes)} up, {human_bytes(progress.downloaded_bytes)} down{full}, "
        f"{progress.time_left or '?'} left"
    )
