"""Sections over all runs of a report, which have one task: what they came to, and their curves side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lora_a2.analysis.convergence import pareto_front
from lora_a2.display.progress import human_bytes, human_time, saving
from lora_a2.report import charts
from lora_a2.report.blocks import Cell, Figure, Section, table
from lora_a2.report.inputs import Run
from lora_a2.tasks.base import PERSONAL, Task

_NOT_COMPARED = ("output-dir", "report-to", "clients-per-pass", "num-workers", "device")
MAX_LINES = 24
"""Curves in one picture; of more runs the best are drawn."""


def overview(runs: Sequence[Run], not_begun: Sequence[Path] = ()) -> list[Section]:
    """The page's first sections; `not_begun`: runs without a finished round, which are named only."""
    first = summary(runs)
    if not_begun:
        named = f"Without a finished round, and left out: {', '.join(path.name for path in not_begun)}."
        first = replace(first, sentences=(*first.sentences, named))
    return [first, *([_seeds(runs)] if _grouped(runs) else []), *curves(runs)]


def summary(runs: Sequence[Run]) -> Section:
    """What each run came to, beside full fine-tuning; columns that nobody has a value in are left out."""
    ranked = sorted(runs, key=lambda run: run.worse)
    columns = {name: [cell(run) for run in ranked] for name, cell in _columns(runs).items()}
    columns = {name: cells for name, cells in columns.items() if any(cell is not None for cell in cells)}
    if len(runs) == 1:
        shown = table(["Figure", "Value"], [(name, cells[0]) for name, cells in columns.items()])
    else:
        rows = zip([run.name for run in ranked], *columns.values(), strict=True)
        shown = table(["Run", *columns], list(rows))
    return Section("Summary", _sentences(ranked), tables=(("", shown),))


def _columns(runs: Sequence[Run]) -> dict[str, Callable[[Run], Cell]]:
    """Header → cell. What all runs share is not among them, unless there is only one run."""
    differs = [] if len(runs) == 1 else _differing(runs)
    found: dict[str, Callable[[Run], Cell]] = {key: _configured(key) for key in differs}
    task = runs[0].task
    first, *others = task.measures
    found[task.title(first)] = _measured(first)
    full = _full_score(runs)
    if full is not None:
        found["Beside full fine-tuning"] = lambda run: None if run.score is None else task.difference(run.score, full)
    found |= {task.title(name): _measured(name) for name in others}
    found |= {"Clients' mean": _measured("client_mean"), "Worst tenth": _measured("client_worst_tenth")}
    if any(PERSONAL in run.metrics for run in runs):
        found["Personal models"] = lambda run: _shown(task, first, run.metrics.get(PERSONAL, {}).get(first))
    found["Uploaded"] = lambda run: human_bytes(run.uploaded_bytes)
    found["Downloaded"] = lambda run: human_bytes(run.curve["downloaded_bytes"].iloc[-1])
    found["Full fine-tuning would upload"] = lambda run: human_bytes(run.full_bytes)
    found["Saved (uploads)"] = _saved
    found["Rounds"] = lambda run: f"{len(run.record.rounds)} of {run.rounds_planned}"
    found["Time"] = lambda run: human_time(sum(sum(record.seconds.values()) for record in run.record.rounds))
    return found


def _sentences(ranked: Sequence[Run]) -> tuple[str, ...]:
    best, task = ranked[0], ranked[0].task
    said = []
    if best.score is not None:
        start = (
            f"{best.name} reached"
            if len(ranked) == 1
            else f"Of {len(ranked)} runs, {best.name} is the best: it reached"
        )
        sent = human_bytes(best.uploaded_bytes)
        said.append(
            f"{start} {task.show(best.score)} {task.shown} on the test examples, with {sent} uploaded, {_saved(best)} less "
            "than full fine-tuning would have uploaded."
        )
    else:
        said.append("No round was evaluated yet.")
    unfinished = [run.name for run in ranked if len(run.record.rounds) < run.rounds_planned]
    if unfinished:
        said.append(f"Not finished: {', '.join(unfinished)}.")
    return tuple(said)


@dataclass(frozen=True)
class _Point:
    """A run after an evaluated round; bytes are sums so far."""

    run: str
    server_round: int
    uploaded: int
    downloaded: int
    score: float


def curves(runs: Sequence[Run]) -> list[Section]:
    """The primary metric by round, and by what had been uploaded."""
    task, title = runs[0].task, runs[0].task.headline
    best = sorted(runs, key=lambda run: run.worse)[:MAX_LINES]
    points = [point for run in runs if run in best for point in _evaluated(run)]
    if not points:
        return []
    left_out = f" Of {len(runs)} runs the {MAX_LINES} best are drawn." if len(runs) > MAX_LINES else ""
    by_round = Figure(
        f"{title} per round",
        f"Test {task.shown} of the global model after each evaluated server round.{left_out}",
        charts.lines(
            [{"series": p.run, "x": p.server_round, "y": p.score} for p in points],
            title,
            y_format=charts.number_format(task),
        ),
        table(["Run", "Server round", title], [(p.run, p.server_round, task.show(p.score)) for p in points]),
    )
    by_bytes = _by_bytes(task, points, left_out)
    # A run alone has its curve by round among its own sections, with the spread over clients.
    return [Section(title, figures=(by_bytes,) if len(runs) == 1 else (by_round, by_bytes))]


def _evaluated(run: Run) -> list[_Point]:
    up, down = dict(run.by_round("uploaded_bytes")), dict(run.by_round("downloaded_bytes"))
    return [_Point(run.name, n, int(up[n]), int(down[n]), value) for n, value in run.by_round(run.task.primary)]


def _by_bytes(task: Task, points: Sequence[_Point], left_out: str) -> Figure:
    several = len({p.run for p in points}) > 1
    gain = np.array([-task.worse(p.score) for p in points])
    front = pareto_front(np.array([p.uploaded for p in points], np.float64), gain)
    rows = [{"series": p.run, "x": p.uploaded, "y": p.score} for p in points]
    spec = charts.lines(
        rows,
        task.headline,
        y_format=charts.number_format(task),
        x="Uploaded so far (bytes, logarithmic)",
        logarithmic=True,
    )
    text = f"Test {task.shown} against all that the clients had uploaded by then.{left_out}"
    cells: list[list[Cell]] = [
        [p.run, p.server_round, human_bytes(p.uploaded), human_bytes(p.downloaded), task.show(p.score)] for p in points
    ]
    header = ["Run", "Server round", "Uploaded", "Downloaded", task.headline]
    if several:
        stairs = sorted({(p.uploaded, p.score) for p, on in zip(points, front, strict=True) if on})
        spec = charts.with_front(spec, [{"x": x, "y": y} for x, y in stairs])
        text += " The dotted line is the Pareto front: nothing left of it is as good."
        cells = [[*row, "yes" if on else ""] for row, on in zip(cells, front, strict=True)]
        header.append("On the front")
    return Figure(f"{task.headline} per byte", text, spec, table(header, cells))


def _seeds(runs: Sequence[Run]) -> Section:
    """Mean and standard deviation of runs that differ in their seed alone."""
    keys = [key for key in _differing(runs) if key != "seed"]
    task = runs[0].task
    measures = {
        **{task.title(name): name for name in task.columns(run.metrics for run in runs)},
        "Worst tenth": "client_worst_tenth",
    }
    rows: list[list[Cell]] = []
    for group in _grouped(runs):
        cells = [_mean_std(task, name, [run.metrics.get(name) for run in group]) for name in measures.values()]
        sent = human_bytes(float(np.mean([run.uploaded_bytes for run in group])))
        rows.append([group[0].name, *(_text(group[0], key) for key in keys), len(group), *cells, sent])
    header = ["First run", *keys, "Seeds", *measures, "Uploaded (mean)"]
    text = "Runs that differ in their seed alone: mean ± sample standard deviation."
    return Section("Over seeds", (text,), tables=(("", table(header, rows)),))


def _grouped(runs: Sequence[Run]) -> list[list[Run]]:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        same = {k: v for k, v in run.record.config.items() if k not in ("seed", *_NOT_COMPARED)}
        groups.setdefault(json.dumps(same, sort_keys=True, default=str), []).append(run)
    return [group for group in groups.values() if len(group) > 1]


def _differing(runs: Sequence[Run]) -> list[str]:
    """The keys of the configuration in which the runs differ."""
    keys = dict.fromkeys(key for run in runs for key in run.record.config)
    return [key for key in keys if key not in _NOT_COMPARED and len({_text(run, key) for run in runs}) > 1]


def _configured(key: str) -> Callable[[Run], Cell]:
    return lambda run: _text(run, key)


def _text(run: Run, key: str) -> str | None:
    value: Any = run.record.config.get(key)
    if value is None:
        return None
    return (
        ", ".join(map(str, value))
        if isinstance(value, list)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def _measured(name: str) -> Callable[[Run], Cell]:
    return lambda run: _shown(run.task, name, run.metrics.get(name))


def _shown(task: Task, name: str, value: float | None) -> str | None:
    return None if value is None else task.show_metric(name, value)


def _saved(run: Run) -> str:
    return saving(100 * (1 - run.uploaded_bytes / run.full_bytes))


def _full_score(runs: Sequence[Run]) -> float | None:
    """The best of the runs of full fine-tuning among them."""
    found = [run.score for run in runs if run.is_full and run.score is not None]
    return min(found, key=runs[0].task.worse, default=None)


def _mean_std(task: Task, name: str, values: Sequence[float | None]) -> str | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    spread = f" ± {task.number(name, float(np.std(known, ddof=1)))}" if len(known) > 1 else ""
    return f"{task.number(name, float(np.mean(known)))}{spread}{task.unit(name)}"
