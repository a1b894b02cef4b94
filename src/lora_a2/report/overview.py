"""Sections over all runs of a report: what they came to, and their curves side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lora_a2.analysis.convergence import pareto_front
from lora_a2.progress import human_bytes, human_time, percent, saving
from lora_a2.report import charts
from lora_a2.report.blocks import Cell, Figure, Section, table
from lora_a2.report.inputs import Run

_NOT_COMPARED = ("output-dir", "report-to", "cohort-size", "num-workers", "device")
MAX_LINES = 24
"""Curves in one picture; of more runs the best are drawn."""


def overview(runs: Sequence[Run]) -> list[Section]:
    """The page's first sections."""
    return [summary(runs), *([_seeds(runs)] if _grouped(runs) else []), *curves(runs)]


def summary(runs: Sequence[Run]) -> Section:
    """What each run came to, beside full fine-tuning."""
    ranked = sorted(runs, key=lambda run: -run.metrics.get("accuracy", -1.0)) if len(runs) > 1 else list(runs)
    columns = _columns(runs)
    header = ["Run", *columns]
    rows: list[list[Cell]] = [[run.name, *(cell(run) for cell in columns.values())] for run in ranked]
    turned = table(["", rows[0][0] or ""], list(zip(header[1:], rows[0][1:], strict=True))) if len(runs) == 1 else None
    return Section("Summary", _sentences(ranked), tables=(("", turned or table(header, rows)),))


def _columns(runs: Sequence[Run]) -> dict[str, Callable[[Run], Cell]]:
    """Header → cell. What all runs share is not among them, unless there is only one run."""
    differs = [] if len(runs) == 1 else _differing(runs)
    found: dict[str, Callable[[Run], Cell]] = {key: _configured(key) for key in differs}
    found["Accuracy"] = _share("accuracy")
    full = _full_accuracy(runs)
    if full is not None:
        found["Beside full fine-tuning"] = lambda run: _points(run.metrics.get("accuracy"), full)
    found |= {"Macro-F1": _share("macro_f1"), "Clients' mean": _share("client_mean")}
    found["Worst tenth"] = _share("client_worst_tenth")
    if any("personal" in run.metrics for run in runs):
        found["Personal models"] = lambda run: _percent(run.metrics.get("personal", {}).get("accuracy"))
    found["Uploaded"] = lambda run: human_bytes(run.curve["uploaded_bytes"].iloc[-1])
    found["Downloaded"] = lambda run: human_bytes(run.curve["downloaded_bytes"].iloc[-1])
    found["Full fine-tuning would upload"] = lambda run: None if run.full_bytes is None else human_bytes(run.full_bytes)
    found["Saved (uploads)"] = _saved
    found["Rounds"] = lambda run: f"{len(run.record.rounds)} of {run.rounds_planned}"
    found["Time"] = lambda run: human_time(sum(sum(line["seconds"].values()) for line in run.record.rounds))
    return found


def _sentences(ranked: Sequence[Run]) -> tuple[str, ...]:
    best = ranked[0]
    said = []
    if "accuracy" in best.metrics:
        start = (
            f"{best.name} reached" if len(ranked) == 1 else f"Of {len(ranked)} runs, {best.name} is the most accurate:"
        )
        sent = human_bytes(best.curve["uploaded_bytes"].iloc[-1])
        saved = _saved(best)
        beside = f", {saved} less than full fine-tuning would have uploaded" if saved is not None else ""
        said.append(
            f"{start} {percent(best.metrics['accuracy'])} of the test examples right, with {sent} uploaded{beside}."
        )
    else:
        said.append("No round was evaluated yet.")
    unfinished = [run.name for run in ranked if len(run.record.rounds) < run.rounds_planned]
    if unfinished:
        said.append(f"Not finished: {', '.join(unfinished)}.")
    if any(run.full_bytes is None for run in ranked):
        said.append("Runs of older versions did not record their model's size: for them full fine-tuning is left out.")
    return tuple(said)


def curves(runs: Sequence[Run]) -> list[Section]:
    """Accuracy by round, and by what had been uploaded."""
    drawn = sorted(runs, key=lambda run: -run.metrics.get("accuracy", -1.0))[:MAX_LINES]
    kept = [run for run in runs if run in drawn]
    points = [
        (run.name, int(number), int(row["uploaded_bytes"]), int(row["downloaded_bytes"]), float(row["accuracy"]))
        for run in kept
        for number, row in run.curve.dropna(subset=["accuracy"]).iterrows()
    ]
    if not points:
        return []
    left_out = f" Of {len(runs)} runs the {MAX_LINES} most accurate are drawn." if len(runs) > MAX_LINES else ""
    by_round = Figure(
        "Accuracy per round",
        f"Test accuracy of the global model after each evaluated server round.{left_out}",
        charts.lines([{"series": n, "x": r, "y": a} for n, r, _, _, a in points], "Accuracy", y_format=".0%"),
        table(["Run", "Server round", "Accuracy"], [(n, r, percent(a)) for n, r, _, _, a in points]),
    )
    return [Section("Accuracy", figures=(by_round, _by_bytes(points, left_out)))]


def _by_bytes(points: Sequence[tuple[str, int, int, int, float]], left_out: str) -> Figure:
    cost, gain = (np.array([point[i] for point in points], np.float64) for i in (2, 4))
    front = pareto_front(cost, gain)
    several = len({point[0] for point in points}) > 1
    rows = [{"series": n, "x": b, "y": a} for n, _, b, _, a in points]
    spec = charts.lines(rows, "Accuracy", y_format=".0%", x="Uploaded so far (bytes, logarithmic)", logarithmic=True)
    text = f"Test accuracy against all that the clients had uploaded by then.{left_out}"
    if several:
        spec = charts.with_front(
            spec,
            sorted(({"x": c, "y": g} for c, g in zip(cost[front], gain[front], strict=True)), key=lambda p: p["x"]),
        )
        text += " The dotted line is the Pareto front: nothing left of it is as accurate."
    cells = [
        (n, r, human_bytes(up), human_bytes(down), percent(a), *(["yes" if on else ""] if several else []))
        for (n, r, up, down, a), on in zip(points, front, strict=True)
    ]
    header = ["Run", "Server round", "Uploaded", "Downloaded", "Accuracy", *(["On the front"] if several else [])]
    return Figure("Accuracy per byte", text, spec, table(header, cells))


def _seeds(runs: Sequence[Run]) -> Section:
    """Mean and standard deviation of runs that differ in their seed alone."""
    rows: list[tuple[Cell, ...]] = []
    for group in _grouped(runs):
        cells = [
            _mean_std([run.metrics.get(name) for run in group])
            for name in ("accuracy", "macro_f1", "client_worst_tenth")
        ]
        sent = np.mean([run.curve["uploaded_bytes"].iloc[-1] for run in group])
        rows.append((group[0].name, len(group), *cells, human_bytes(float(sent))))
    header = ["First of the runs", "Seeds", "Accuracy", "Macro-F1", "Worst tenth", "Uploaded (mean)"]
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


def _share(name: str) -> Callable[[Run], Cell]:
    return lambda run: _percent(run.metrics.get(name))


def _percent(value: float | None) -> str | None:
    return None if value is None else percent(value)


def _saved(run: Run) -> str | None:
    if not run.full_bytes:
        return None
    return saving(100 * (1 - run.curve["uploaded_bytes"].iloc[-1] / run.full_bytes))


def _full_accuracy(runs: Sequence[Run]) -> float | None:
    """The best of the runs of full fine-tuning among them."""
    found = [run.metrics["accuracy"] for run in runs if run.is_full and "accuracy" in run.metrics]
    return max(found, default=None)


def _points(value: float | None, reference: float) -> str | None:
    return None if value is None else f"{100 * (value - reference):+.1f} points".replace("-", "−")


def _mean_std(values: Sequence[float | None]) -> str | None:
    known = [100 * value for value in values if value is not None]
    if not known:
        return None
    spread = f" ± {np.std(known, ddof=1):.1f}" if len(known) > 1 else ""
    return f"{np.mean(known):.1f}{spread} %"
