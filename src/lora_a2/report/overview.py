"""Sections over all runs of a report, which have one task: the primary metric by round and by byte, and what they came to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from lora_a2.analysis.convergence import pareto_front
from lora_a2.analysis.intervals import interval
from lora_a2.display.progress import human_bytes, human_time, saving
from lora_a2.report import axes, curves
from lora_a2.report.blocks import Cell, Figure, Section, table, trimmed
from lora_a2.report.curves import At, Curve, Reading
from lora_a2.report.figures import INTERVAL, TEST_EXAMPLES, interval_text, on_examples, shared_count
from lora_a2.report.groups import Group, Point, configured, differing, grouped
from lora_a2.report.inputs import Run
from lora_a2.report.rounds import spread
from lora_a2.tasks.base import PERSONAL, Task

MAX_LINES = 24
"""Curves in one picture; of more the best are drawn."""


def overview(runs: Sequence[Run], not_begun: Sequence[Path] = ()) -> list[Section]:
    """The page's first sections; `not_begun`: runs without a finished round, which are named only."""
    groups = sorted(grouped(runs), key=lambda group: group.worse)
    first = headline(groups)
    if not_begun:
        named = f"Without a finished round, and left out: {', '.join(path.name for path in not_begun)}."
        first = replace(first, sentences=(*first.sentences, named))
    over = _seeds(groups) if any(len(group.runs) > 1 for group in groups) else None
    return [first, *([over] if over else []), summary(groups)]


def headline(groups: Sequence[Group]) -> Section:
    """What came out, in a sentence or two, and the primary metric by round, then by what had been uploaded."""
    task = groups[0].task
    drawn = [group for group in groups if group.points][:MAX_LINES]
    if not drawn:
        return Section(task.headline, _sentences(groups))
    known = sum(bool(group.points) for group in groups)
    left_out = f" Of {known} curves the {MAX_LINES} best are drawn." if known > MAX_LINES else ""
    alone = len(groups) == 1 and len(groups[0].runs) == 1
    by_round = spread(groups[0].runs[0]) if alone else _by_round(drawn, left_out)
    by_bytes = [_by_bytes(drawn, left_out)] if any(p.uploaded for group in drawn for p in group.points) else []
    return Section(task.headline, _sentences(groups), figures=(by_round, *by_bytes))


def _sentences(ranked: Sequence[Group]) -> tuple[str, ...]:
    best = ranked[0]
    said = ["No round was evaluated yet." if best.score is None else _best(best, ranked)]
    unfinished = [run.name for group in ranked for run in group.runs if not run.is_finished]
    if unfinished:
        said.append(f"Not finished: {', '.join(unfinished)}.")
    return tuple(said)


def _best(best: Group, ranked: Sequence[Group]) -> str:
    """Of what is the best by its mean over seeds: with several seeds how far these lie apart, with one the interval."""
    assert best.score is not None, "it was evaluated"
    task, of, score = best.task, on_examples(best.counted), best.task.show(best.score)
    sent = human_bytes(float(np.mean([run.uploaded_bytes for run in best.counted])))
    less = "" if best.runs[0].is_full else f", {_saved(best)} less than full fine-tuning would have uploaded"
    costs = f"with {sent} uploaded{less}."
    kind = "settings" if any(len(group.runs) > 1 for group in ranked) else "runs"
    among = f"Of {len(ranked)} {kind}, {best.name} is the best" if len(ranked) > 1 else best.name
    if len(best.runs) == 1:
        reached = f"{among}: it reached" if len(ranked) > 1 else f"{among} reached"
        found = interval_text(task, best.counted[0].interval)
        return f"{reached} {score} {task.shown} on {of}{f' (95 % interval {found})' if found else ''}, {costs}"
    low, high = task.show(min(best.scores)), task.show(max(best.scores))
    by = " by its mean" if len(ranked) > 1 else ""
    return (
        f"{among}{by}: {score} {task.shown} over {_seeds_of(best)} (from {low} to {high}) on {of}, on average {costs}"
    )


def _seeds_of(group: Group) -> str:
    """'3 seeds', or how many of them count."""
    counted, there = len(group.counted), len(group.runs)
    return f"{there} seeds" if counted == there else f"{counted} of {there} seeds, those that are finished,"


def _looks(groups: Sequence[Group]) -> tuple[list[tuple[str, str]], str | None, str | None]:
    """The colour and the dash of each group, and what these two say: the method, and what else differs within a method; with
    one method the latter has both."""
    methods, variants = ({getattr(group, what) for group in groups} for what in ("method", "variant"))
    if len(methods) > 1:
        return [(group.method, group.variant) for group in groups], "Method", "Options" if len(variants) > 1 else None
    return [(group.variant, group.variant) for group in groups], None, None


def _drawn(groups: Sequence[Group], at: Callable[[Point], At], across: axes.Across, alone: str) -> dict[str, object]:
    """The curves of `groups`; `alone` is what the band of one with several seeds is called."""
    looks, colour, dash = _looks(groups)
    task = groups[0].task
    drawn = [
        Curve(group.name, [at(point) for point in group.points if point.uploaded or not across.in_bytes], *own)
        for group, own in zip(groups, looks, strict=True)
    ]
    reading = Reading(task.headline, axes.number_format(task), colour, dash, (f"Lowest {alone}", f"Highest {alone}"))
    return curves.lines(drawn, across, reading)


def _by_round(groups: Sequence[Group], left_out: str) -> Figure:
    task, several = groups[0].task, any(len(group.counted) > 1 for group in groups)
    numbers = [point.server_round for group in groups for point in group.points]

    def at(point: Point) -> At:
        band = (point.low, point.high) if point.low < point.high else (None, None)
        return At(point.server_round, point.score, *band)

    text = f"Test {task.shown} of the global model after each evaluated server round, on {_all_examples(groups)}."
    if several:
        text += " A line is the mean over seeds, its band goes from the lowest seed to the highest."
    spec = _drawn(groups, at, axes.rounds(numbers), "seed")
    header = ["Series", "Server round", task.headline, "Lowest seed", "Highest seed", "Seeds", *_beside(task)]
    rows = [
        [
            group.name,
            p.server_round,
            task.show(p.score),
            *_ends(task, group, p),
            len(group.counted),
            *_of_round(group, p),
        ]
        for group in groups
        for p in group.points
    ]
    shown = trimmed(table(header, rows), keep=("Server round", task.headline))
    return Figure(f"{task.headline} per round", f"{text}{left_out}", spec, shown)


def _ends(task: Task, group: Group, point: Point) -> tuple[Cell, Cell]:
    return (task.show(point.low), task.show(point.high)) if len(group.counted) > 1 else (None, None)


def _beside(task: Task) -> list[str]:
    return [INTERVAL, TEST_EXAMPLES] if task.primary in task.proportions else [TEST_EXAMPLES]


def _of_round(group: Group, point: Point) -> list[Cell]:
    """The cells under `_beside`: an interval is of one run, not of a mean over seeds."""
    found = [run.record.rounds[point.server_round - 1].metrics for run in group.counted]
    counts = {metrics.get("num_examples") for metrics in found}
    examples = counts.pop() if len(counts) == 1 else None
    alone = interval_text(group.task, interval(group.task, found[0])) if len(found) == 1 else None
    return [alone, examples] if group.task.primary in group.task.proportions else [examples]


def _all_examples(groups: Sequence[Group]) -> str:
    return on_examples([run for group in groups for run in group.counted])


def _by_bytes(groups: Sequence[Group], left_out: str) -> Figure:
    task = groups[0].task
    # Where every reply was refused nothing was uploaded, and a logarithm has no place for it.
    points = [(group, point) for group in groups for point in group.points if point.uploaded]
    gain = np.array([-task.worse(p.score) for _, p in points])
    front = pareto_front(np.array([p.uploaded for _, p in points], np.float64), gain)
    across = axes.byte_sizes([p.uploaded for _, p in points], "Uploaded so far (logarithmic)")
    spec = _drawn(groups, lambda p: At(p.uploaded, p.score), across, "seed")
    means = ", means over seeds" if any(len(group.counted) > 1 for group in groups) else ""
    text = f"Test {task.shown} against all that the clients had uploaded by then{means}.{left_out}"
    header = ["Series", "Server round", "Uploaded", "Downloaded", task.headline]
    cells: list[list[Cell]] = [
        [g.name, p.server_round, human_bytes(p.uploaded), human_bytes(p.downloaded), task.show(p.score)]
        for g, p in points
    ]
    if len(groups) > 1:
        stairs = sorted({(p.uploaded, p.score) for (_, p), on in zip(points, front, strict=True) if on})
        spec = curves.with_front(spec, [{"x": x, "y": y} for x, y in stairs])
        text += " The dotted line is the Pareto front: nothing left of it is as good."
        cells = [[*row, "yes" if on else ""] for row, on in zip(cells, front, strict=True)]
        header.append("On the front")
    return Figure(f"{task.headline} per byte", text, spec, table(header, cells))


def summary(groups: Sequence[Group]) -> Section:
    """What each run came to, beside full fine-tuning; what all have alike is said once."""
    runs = sorted((run for group in groups for run in group.runs), key=lambda run: run.worse)
    columns = {name: [cell(run) for run in runs] for name, cell in _columns(runs, groups).items()}
    columns = {name: cells for name, cells in columns.items() if any(cell is not None for cell in cells)}
    if len(runs) == 1:
        shown = table(["Figure", "Value"], [(name, cells[0]) for name, cells in columns.items()])
    else:
        rows = zip([run.name for run in runs], *columns.values(), strict=True)
        shown = trimmed(table(["Run", *columns], list(rows)), keep=(runs[0].task.headline,))
    return Section("Summary", tables=(("", shown),))


def _columns(runs: Sequence[Run], groups: Sequence[Group]) -> dict[str, Callable[[Run], Cell]]:
    """Header → cell. Of the options those in which the runs differ, if there are several."""
    differs = [] if len(runs) == 1 else differing(runs)
    found: dict[str, Callable[[Run], Cell]] = {key: _configured(key) for key in differs}
    task = runs[0].task
    first, *others = task.measures
    found[task.title(first)] = _measured(first)
    found[INTERVAL] = lambda run: interval_text(task, run.interval)
    found[TEST_EXAMPLES] = lambda run: None if run.num_test_examples is None else f"{run.num_test_examples:,}"
    full = _full_score(groups)
    if full is not None:
        found["Beside full fine-tuning"] = lambda run: None if run.score is None else task.difference(run.score, full)
    found |= {task.title(name): _measured(name) for name in others}
    found |= {"Clients' mean": _measured("client_mean"), "Worst tenth": _measured("client_worst_tenth")}
    if any(PERSONAL in run.metrics for run in runs):
        found["Personal models"] = lambda run: _shown(task, first, run.metrics.get(PERSONAL, {}).get(first))
        found[f"Personal models, {INTERVAL}"] = lambda run: interval_text(
            task, interval(task, run.metrics.get(PERSONAL, {}))
        )
    found["Uploaded"] = lambda run: human_bytes(run.uploaded_bytes)
    found["Downloaded"] = lambda run: human_bytes(run.curve["downloaded_bytes"].iloc[-1])
    found["Full fine-tuning would upload"] = lambda run: human_bytes(run.full_bytes)
    found["Saved (uploads)"] = lambda run: _saving(run.uploaded_bytes, run.full_bytes)
    found["Rounds"] = lambda run: f"{len(run.record.rounds)} of {run.rounds_planned}"
    found["Time"] = lambda run: human_time(sum(sum(record.seconds.values()) for record in run.record.rounds))
    found["Date"] = lambda run: run.date
    return found


def _seeds(groups: Sequence[Group]) -> Section:
    """Mean and standard deviation of runs that differ in their seed alone, the best first."""
    runs = [run for group in groups for run in group.runs]
    task = runs[0].task
    measures = {
        **{task.title(name): name for name in task.columns(run.metrics for run in runs)},
        "Worst tenth": "client_worst_tenth",
    }
    rows: list[list[Cell]] = []
    for group in groups:
        if len(group.runs) == 1 or not group.counted:
            continue
        cells = [_mean_std(task, name, [run.metrics.get(name) for run in group.counted]) for name in measures.values()]
        sent = human_bytes(float(np.mean([run.uploaded_bytes for run in group.counted])))
        rows.append([group.name, len(group.counted), *cells, shared_count(group.counted), sent])
    header = ["Setting", "Seeds", *measures, TEST_EXAMPLES, "Uploaded (mean)"]
    text = "Runs that differ in their seed alone: mean ± sample standard deviation."
    return Section("Over seeds", (text,), tables=(("", trimmed(table(header, rows), keep=(task.headline,))),))


def _configured(key: str) -> Callable[[Run], Cell]:
    return lambda run: configured(run, key)


def _measured(name: str) -> Callable[[Run], Cell]:
    return lambda run: _shown(run.task, name, run.metrics.get(name))


def _shown(task: Task, name: str, value: float | None) -> str | None:
    return None if value is None else task.show_metric(name, value)


def _saved(group: Group) -> str:
    uploaded, full = (sum(getattr(run, name) for run in group.counted) for name in ("uploaded_bytes", "full_bytes"))
    return _saving(uploaded, full)


def _saving(uploaded: int, full: int) -> str:
    return saving(100 * (1 - uploaded / full))


def _full_score(groups: Sequence[Group]) -> float | None:
    """The best mean over seeds of full fine-tuning, if it is among them."""
    found = [group.score for group in groups if group.runs[0].is_full and group.score is not None]
    return min(found, key=groups[0].task.worse, default=None)


def _mean_std(task: Task, name: str, values: Sequence[float | None]) -> str | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    spread = f" ± {task.number(name, float(np.std(known, ddof=1)))}" if len(known) > 1 else ""
    return f"{task.number(name, float(np.mean(known)))}{spread}{task.unit(name)}"
