"""The tables of a sweep: a row a run, a row a cell with mean and standard deviation over seeds, and markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lora_a2.system.files import write_atomic

MEASURES = ("accuracy", "personal_accuracy", "macro_f1", "client_mean", "client_worst_tenth")
COSTS = ("uploaded_parameters", "uploaded_bytes", "downloaded_bytes", "reduction_percent", "seconds")
AT_ROUND = "accuracy_at_"
"""Beginning of the names of measures such as accuracy_at_20."""
REPEATS = "seed"
"""Runs that differ in this alone are repetitions of one cell."""


def cells(runs: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """A row for each combination of `keys`, in order of appearance.

    `runs` has a row a run: the keys, status ("done", "failed", "open"), measures and costs. A cell has runs and failed, their
    numbers; of each measure the mean and the sample standard deviation (ddof 1; NaN for one run) over its finished runs;
    of each cost the mean.
    """
    rows = []
    for values, group in runs.groupby(list(keys), sort=False, dropna=False):
        done = group[group["status"] == "done"]
        row: dict[str, Any] = dict(zip(keys, values, strict=True))
        row |= {"runs": len(done), "failed": int((group["status"] == "failed").sum())}
        for name in (*MEASURES, *_at_rounds(runs)):
            row[f"{name}_mean"] = _mean(done[name])
            row[f"{name}_std"] = float(done[name].std(ddof=1)) if len(done) > 1 else np.nan
        rows.append({**row, **{name: _mean(done[name]) for name in COSTS}})
    return pd.DataFrame(rows)


def _at_rounds(runs: pd.DataFrame) -> list[str]:
    return [name for name in map(str, runs.columns) if name.startswith(AT_ROUND) and name[len(AT_ROUND) :].isdigit()]


def _mean(values: pd.Series) -> float:
    return float(values.mean()) if len(values) else np.nan


def plus_minus(mean: float, std: float) -> str:
    """0.7134, 0.0123 → '71.3 ± 1.2'; without a spread the mean alone; '-' if there is none."""
    if mean != mean:
        return "-"
    return f"{100 * mean:.1f}" if std != std else f"{100 * mean:.1f} ± {100 * std:.1f}"


def long_table(table: pd.DataFrame, keys: Sequence[str]) -> list[list[str]]:
    """Header and rows: the keys, accuracy (at rounds, and at the end), worst tenth, uploads, number of runs."""
    rounds = [
        name.removesuffix("_mean")
        for name in map(str, table.columns)
        if name.startswith(AT_ROUND) and name.endswith("_mean")
    ]
    heads = [f"round {name.removeprefix(AT_ROUND)} %" for name in rounds]
    rows = [[*keys, *heads, "accuracy %", "worst tenth %", "uploaded parameters", "runs"]]
    for cell in table.to_dict("records"):
        failed = f" ({cell['failed']} failed)" if cell["failed"] else ""
        rows.append(
            [
                *(_shown(cell[key]) for key in keys),
                *(plus_minus(cell[f"{name}_mean"], cell[f"{name}_std"]) for name in rounds),
                plus_minus(*_accuracy(cell)),
                plus_minus(cell["client_worst_tenth_mean"], cell["client_worst_tenth_std"]),
                _count(cell["uploaded_parameters"]),
                f"{cell['runs']}{failed}",
            ]
        )
    return rows


def wide_table(
    table: pd.DataFrame, rows: Sequence[str], columns: Sequence[str], published: Mapping[tuple[str, str], float]
) -> list[list[str]]:
    """Header and rows of a layout as in a paper: accuracy, with the published figure (%) in brackets if there is one.

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
        texts = [plus_minus(*_accuracy(held[head])) if head in held else "" for head in heads]
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


def _accuracy(cell: Mapping[Any, Any]) -> tuple[float, float]:
    """Mean and deviation of the personal models' accuracy if there is one, else of the global model's."""
    name = "accuracy" if cell["personal_accuracy_mean"] != cell["personal_accuracy_mean"] else "personal_accuracy"
    return cell[f"{name}_mean"], cell[f"{name}_std"]


def _shown(value: Any) -> str:
    return "" if value is None or value != value else f"{value:g}" if isinstance(value, float) else str(value)


def _count(value: float) -> str:
    return "-" if value != value else f"{value:,.0f}"
