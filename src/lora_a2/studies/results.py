"""The tables of a sweep: a row a run, a row a cell with mean and standard deviation over seeds, and markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lora_a2.analysis.convergence import pareto_front
from lora_a2.studies.batch import PlannedRun
from lora_a2.studies.experiment import Point
from lora_a2.system.files import write_atomic
from lora_a2.tasks.base import PERSONAL, Task

COSTS = ("uploaded_parameters", "uploaded_bytes", "downloaded_bytes", "reduction_percent", "seconds")
REPEATS = "seed"
"""Runs that differ in this alone are repetitions of one cell."""


def measures(task: Task) -> tuple[str, ...]:
    """The columns of a task's metrics: the primary one, of the global and of the personal models, the others, the clients'."""
    first, *others = task.measures
    return first, f"{PERSONAL}_{first}", *others, "client_mean", "client_worst_tenth"


def at_round(task: Task, server_round: int) -> str:
    """The column of the primary metric after a round, such as accuracy_at_20."""
    return f"{task.primary}_at_{server_round}"


def cells(runs: pd.DataFrame, keys: Sequence[str], task: Task) -> pd.DataFrame:
    """A row for each combination of `keys`, in order of appearance.

    `runs` has a row a run, all of one task: the keys, status ("done", "failed", "open"), measures (those that it has) and costs.
    A cell has runs and failed, their numbers; of each measure the mean and the sample standard deviation (ddof 1; NaN for one run) over its finished runs;
    of each cost the mean.
    """
    rows = []
    for values, group in runs.groupby(list(keys), sort=False, dropna=False):
        done = group[group["status"] == "done"]
        row: dict[str, Any] = dict(zip(keys, values, strict=True))
        row |= {"runs": len(done), "failed": int((group["status"] == "failed").sum())}
        shown = [name for name in measures(task) if name in runs]
        for name in (*shown, *(at_round(task, n) for n in _at_rounds(runs, task, ""))):
            row[f"{name}_mean"] = _mean(done[name])
            row[f"{name}_std"] = float(done[name].std(ddof=1)) if len(done) > 1 else np.nan
        rows.append({**row, **{name: _mean(done[name]) for name in COSTS}})
    return pd.DataFrame(rows)


def row(point: Point, run: PlannedRun, task: Task, tasks: Sequence[Task], at_rounds: Sequence[int]) -> dict[str, Any]:
    """A run of `task` as a row: its name and status, with the measures of all `tasks` and the costs; NaN where it has none."""
    summary = run.summary()
    found = {} if summary is None else summary.to_json()
    status = "done" if summary is not None else "open" if run.failure() is None else "failed"
    shared = {"run": run.name, "arm": point.arm, "method": run.config.method, REPEATS: run.config.seed}
    names = dict.fromkeys((*(name for one in tasks for name in measures(one)), *COSTS))
    numbers = {name: np.nan if found.get(name) is None else float(found[name]) for name in names}
    rounds = {
        at_round(one, n): run.score_at(n) if summary is not None and one is task else np.nan
        for one in tasks
        for n in at_rounds
    }
    return {**shared, "status": status, **numbers, **rounds}


def on_front(table: pd.DataFrame, setting: Sequence[str], task: Task) -> list[bool]:
    """Which cells no other cell with equal values of `setting` beats in both the task's primary metric and bytes uploaded."""
    front = pd.Series(False, index=table.index)
    name = f"{task.primary}_mean"
    known = table[table[name].notna()]
    for _, group in known.groupby([*setting], dropna=False) if setting else [((), known)]:
        gain = np.array([-task.worse(value) for value in group[name]], np.float64)
        front[group.index] = pareto_front(group["uploaded_bytes"].to_numpy(), gain)
    return [bool(value) for value in front]


def _at_rounds(table: pd.DataFrame, task: Task, ending: str) -> list[int]:
    """The rounds of the columns that `at_round` names, which have this behind their names."""
    start = at_round(task, 0).removesuffix("0")
    found = (re.fullmatch(f"{start}([0-9]+){ending}", name) for name in map(str, table.columns))
    return [int(match[1]) for match in found if match]


def _mean(values: pd.Series) -> float:
    return float(values.mean()) if len(values) else np.nan


def plus_minus(task: Task, mean: float, std: float) -> str:
    """Of the primary metric: 0.7134, 0.0123 → '71.3 ± 1.2'; without a spread the mean alone; '-' if there is none."""
    if mean != mean:
        return "-"
    texts = (task.number(task.primary, value) for value in (mean, std) if value == value)
    return " ± ".join(texts)


def long_table(table: pd.DataFrame, keys: Sequence[str], task: Task) -> list[list[str]]:
    """Header and rows: the keys, the primary metric (at rounds, and at the end), worst tenth, uploads, number of runs."""
    rounds, unit = _at_rounds(table, task, "_mean"), task.unit()
    heads = [f"{name}{unit}" for name in (*(f"round {number}" for number in rounds), task.shown, "worst tenth")]
    rows = [[*keys, *heads, "uploaded parameters", "runs"]]
    for cell in table.to_dict("records"):
        failed = f" ({cell['failed']} failed)" if cell["failed"] else ""
        rows.append(
            [
                *(_shown(cell[key]) for key in keys),
                *(plus_minus(task, *_mean_std(cell, at_round(task, number))) for number in rounds),
                plus_minus(task, *_score(cell, task)),
                plus_minus(task, *_mean_std(cell, "client_worst_tenth")),
                _count(cell["uploaded_parameters"]),
                f"{cell['runs']}{failed}",
            ]
        )
    return rows


def wide_table(
    table: pd.DataFrame,
    rows: Sequence[str],
    columns: Sequence[str],
    published: Mapping[tuple[str, str], float],
    task: Task,
) -> list[list[str]]:
    """Header and rows of a layout as in a paper: the primary metric, with the published figure, in percent if ours is, in
    brackets if there is one.

    `published` is by row and head, their values joined by a blank and by a comma; its heads come first, in its order.
    """
    heads = list(dict.fromkeys(tuple(_shown(cell[key]) for key in columns) for cell in table.to_dict("records")))
    order = list(dict.fromkeys(head for _, head in published))
    heads.sort(key=lambda head: order.index(text) if (text := ", ".join(head)) in order else len(order))
    found: dict[tuple[str, ...], dict[tuple[str, ...], dict[Any, Any]]] = {}
    for cell in table.to_dict("records"):
        row = tuple(_shown(cell[key]) for key in rows)
        found.setdefault(row, {})[tuple(_shown(cell[key]) for key in columns)] = cell
    shown = [[*rows, *(", ".join(head) for head in heads), "uploaded parameters"]]
    for row, held in found.items():
        texts = [plus_minus(task, *_score(held[head], task)) if head in held else "" for head in heads]
        figures = [published.get((" ".join(row), ", ".join(head))) for head in heads]
        beside = ["" if figure is None else f" ({figure:g})" for figure in figures]
        mean_upload = float(np.mean([cell["uploaded_parameters"] for cell in held.values()]))
        shown.append([*row, *((a + b).strip() for a, b in zip(texts, beside, strict=True)), _count(mean_upload)])
    return shown


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A markdown table of header and rows."""
    head, *body = ["| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in rows]
    return "\n".join([head, "|" + " --- |" * len(rows[0]), *body]) + "\n"


def write_tables(folder: Path, runs: pd.DataFrame, table: pd.DataFrame, text: str) -> None:
    """results.md, results.csv and results.parquet (a row a cell), runs.csv and runs.parquet (a row a run)."""
    write_atomic(folder / "results.md", text.encode())
    for name, frame in (("results", table), ("runs", runs)):
        write_atomic(folder / f"{name}.csv", harmless(frame).to_csv(index=False).encode())
        write_atomic(folder / f"{name}.parquet", frame.to_parquet(index=False))


def harmless(frame: pd.DataFrame) -> pd.DataFrame:
    """With an apostrophe before every text that a spreadsheet would take for a formula; numbers stay numbers."""

    def shown(value: Any) -> Any:
        return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value

    return frame.map(shown).rename(columns=shown).rename(index=shown)


def _score(cell: Mapping[Any, Any], task: Task) -> tuple[float, float]:
    """Mean and deviation of the primary metric, of the personal models if there are some, else of the global model."""
    mean, std = _mean_std(cell, f"{PERSONAL}_{task.primary}")
    return (mean, std) if mean == mean else _mean_std(cell, task.primary)


def _mean_std(cell: Mapping[Any, Any], name: str) -> tuple[float, float]:
    return cell[f"{name}_mean"], cell[f"{name}_std"]


def _shown(value: Any) -> str:
    return "" if value is None or value != value else f"{value:g}" if isinstance(value, float) else str(value)


def _count(value: float) -> str:
    return "-" if value != value else f"{value:,.0f}"
