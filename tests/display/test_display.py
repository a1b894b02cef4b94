"""The displays, driven with made-up rounds."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from lora_a2.display.live import (
    Display,
    LiveDisplay,
    PlainDisplay,
    SilentDisplay,
    choose_display,
    render,
    stdout_console,
)
from lora_a2.display.progress import human_bytes, human_time, saving, sparkline
from lora_a2.federation.observer import RunStart
from lora_a2.federation.records import RoundRecord


class Clock:
    """Seconds that pass when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def record(server_round: int, accuracy: float | None = None, **other: Any) -> RoundRecord:
    metrics = {} if accuracy is None else {"accuracy": accuracy}
    values: dict[str, Any] = {
        "uploaded_bytes": 1_200,
        "uploaded_parameters": 250,
        "downloaded_bytes": 20_000,
        "downloaded_parameters": 5_000,
    }
    return RoundRecord(server_round, ["B"], [], train_loss=1.5, metrics=metrics, **{**values, **other})


def start(display: Display, first_round: int = 1) -> None:
    display.started(
        RunStart(
            output_dir="runs/x",
            num_clients=10,
            clients_per_round=4,
            first_round=first_round,
            num_server_rounds=5,
            full_finetuning_bytes_per_round=4_000_000,
            method="some-method",
            model="some/model",
            data="[data].csv",
        )
    )


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=100, color_system="truecolor", legacy_windows=False)


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_plain_lines() -> None:
    console, clock = Console(file=io.StringIO(), width=40), Clock()
    with PlainDisplay(console, clock) as display:
        start(display)
        clock.now = 10
        display.clients_done(1, 4, 4)
        display.round_done(record(1, 0.5))
        clock.now = 30
        display.round_done(record(2, refused={7: "not finite"}))
    assert text_of(console).splitlines() == [
        "some-method: some/model on [data].csv, 4 of 10 clients a round",
        "round 1/5: accuracy 50.0 %, loss 1.500, so far 1.2 kB up, 20.0 kB down "
        "(full fine-tuning 4.0 MB, saved 99.97 %), 0:40 left",
        "round 2/5: loss 1.500, so far 2.4 kB up, 40.0 kB down (full fine-tuning 8.0 MB, saved 99.97 %), 0:45 left",
        "Round 2: the reply of client 7 was refused: not finite",
    ]
    assert display.output_dir == "runs/x"


def test_replayed_rounds_count_but_are_not_shown_and_set_no_pace() -> None:
    console, clock = Console(file=io.StringIO(), width=200), Clock()
    display = PlainDisplay(console, clock)
    start(display, first_round=3)
    clock.now = 100
    display.round_done(record(1, 0.1, refused={1: "old"}))
    display.round_done(record(2, 0.2))
    clock.now = 107
    display.round_done(record(3, 0.3))
    title, line = text_of(console).splitlines()
    assert title.endswith("continued at round 3")
    assert "3.6 kB up" in line
    assert line.endswith("0:14 left")
    assert display.progress is not None
    assert display.progress.scores == [0.1, 0.2, 0.3]


@pytest.mark.parametrize(
    ("first_round", "ending"), [(1, "a round"), (5, "continued at round 5"), (6, "finished already")]
)
def test_the_title_tells_where_a_run_continues(first_round: int, ending: str) -> None:
    display = SilentDisplay()
    start(display, first_round)
    assert display.progress is not None
    assert display.progress.title.endswith(ending)


def test_a_long_round_is_not_silent() -> None:
    """A line every half minute, at the end of a client; none where lines come often anyway."""
    console, clock = Console(file=io.StringIO(), width=200), Clock()
    with PlainDisplay(console, clock) as display:
        start(display)
        for done in range(1, 5):
            clock.now += 20
            display.clients_done(1, done, 4)
        display.round_done(record(1, 0.5))
        clock.now += 10
        display.clients_done(2, 1, 4)
    assert [line.partition(", so far")[0] for line in text_of(console).splitlines()[1:]] == [
        "round 1/5: 2 of 4 clients, 6:00 left",
        "round 1/5: 4 of 4 clients, 5:20 left",
        "round 1/5: accuracy 50.0 %, loss 1.500",
    ]


def test_rounds_stay_in_the_scrollback_and_loading_has_a_clock() -> None:
    console, clock = terminal(), Clock()
    with LiveDisplay(console, clock) as display:
        clock.now = 65
        display._live.refresh()
        assert "Loading model and data … 1:05" in text_of(console)
        start(display, first_round=2)
        display.round_done(record(1, 0.4))
        display.round_done(record(2, 0.5))
    shown = text_of(console)
    assert shown.count("round 2/5: accuracy 50.0 %") == 1 and "round 1/5" not in shown


def test_live_display_on_a_terminal() -> None:
    console, clock = terminal(), Clock()
    with LiveDisplay(console, clock) as display:
        assert "Loading" in text_of(console)
        start(display)
        for number, accuracy in enumerate((0.3, 0.6, 0.55), 1):
            clock.now += 8
            display.round_done(record(number, accuracy))
        clock.now += 4
        display.clients_done(4, 2, 4)
        display.note("a notice with [brackets]")
        console.file.truncate(0)
        assert display.progress is not None
        console.print(render(display.progress))
    shown = text_of(console)
    for part in (
        "3/5",
        "2/4",
        "55.0 %",
        "▁█",
        "best 60.0 %",
        "3.6 kB up",
        "60.0 kB down",
        "12.0 MB up",
        "99.97 %",
        "0:12",
    ):
        assert part in shown


def test_live_display_restores_the_terminal_after_an_error() -> None:
    console = terminal()
    error = KeyboardInterrupt()
    with contextlib.suppress(KeyboardInterrupt), LiveDisplay(console):
        raise error
    hide, show = "\x1b[?25l", "\x1b[?25h"
    assert text_of(console).rfind(show) > text_of(console).rfind(hide) >= 0


def test_silence(capsys: pytest.CaptureFixture[str]) -> None:
    with SilentDisplay() as display:
        start(display)
        display.clients_done(1, 1, 4)
        display.round_done(record(1, 0.5))
    assert display.output_dir == "runs/x"
    assert capsys.readouterr() == ("", "")


def test_the_choice_follows_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(choose_display(quiet=True), SilentDisplay)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    assert isinstance(choose_display(quiet=False), PlainDisplay)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    assert isinstance(choose_display(quiet=False), LiveDisplay)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(choose_display(quiet=False), PlainDisplay)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1_000, "1.0 kB"), (999_960, "1.0 MB"), (7.96e9, "8.0 GB"), (3e15, "3,000.0 TB")],
)
def test_bytes_for_people(count: float, text: str) -> None:
    assert human_bytes(count) == text


def test_time_and_trend_for_people() -> None:
    assert [human_time(s) for s in (0, 59.6, 3725)] == ["0:00", "1:00", "1:02:05"]
    assert sparkline([0.5]) == ""
    assert sparkline([0, 1, 0.5]) == "▁█▅"
    assert sparkline([0.5, 0.5]) == "▁▁"
    assert len(sparkline(range(100))) == 24


def test_a_saving_is_never_rounded_up_to_all() -> None:
    assert [saving(v) for v in (99.934, 99.9971, 99.99991, -3.0)] == ["99.93 %", "99.997 %", "99.9999 %", "-3.00 %"]


def test_tables_in_a_pipe_cut_no_figure(capsys: pytest.CaptureFixture[str]) -> None:
    """Rich takes 80 columns for a pipe, and shortens what does not fit."""
    table = Table(*(f"Column {n}" for n in range(8)))
    table.add_row(*(f"0.123456789{n}" for n in range(8)))
    stdout_console().print(table)
    printed = capsys.readouterr().out
    assert all(f"0.123456789{n}" in printed for n in range(8))
