"""Does joining help? Each client alone, together, after personal tuning, and with all data in one place."""

from __future__ import annotations

import shlex

from lora_a2.analysis.baselines import COLUMNS, TOGETHER, read_baselines, side_by_side
from lora_a2.federation.scores import best_round
from lora_a2.report import axes, charts
from lora_a2.report.blocks import Figure, Section, table
from lora_a2.report.inputs import Run

MAX_CLIENTS = 40
"""Clients that are drawn; of more the first by name."""


def joining(run: Run) -> Section | None:
    """A table and a picture by client; None if the run has nothing to compare its result with."""
    record, task = run.record, run.task
    best = best_round(record.rounds) if record.config.get("keep") == "best" else None
    found = read_baselines(record.path, len(record.rounds) if best is None else best.server_round)
    missing = [COLUMNS[kind].lower() for kind in _wanted(run) if kind not in found]
    said = [f"Not computed yet: {', '.join(missing)}. It is after: lora-a2 resume {shlex.quote(str(record.path))}"]
    said = said if missing and run.is_finished else []
    if not found or not run.metrics.get("per_client"):
        return Section("Alone or together", tuple(said)) if said else None
    beside = side_by_side(task, found, run.metrics)
    kinds = list(beside["mean"])
    rows = sorted(beside["clients"], key=lambda row: str(row["client"]))
    drawn = rows[:MAX_CLIENTS]
    points = [
        {
            "name": row["client"],
            "value": row[kind],
            "kind": COLUMNS[kind],
            "said": f"{row['client']}, {COLUMNS[kind].lower()}: {task.show(row[kind])}",
        }
        for row in drawn
        for kind in kinds
        if row[kind] is not None
    ]
    cut = f" The first {MAX_CLIENTS} of {len(rows)} clients by name." if len(rows) > MAX_CLIENTS else ""
    figure = Figure(
        "Does joining help?",
        f"{task.headline} on each client's own test examples: {', '.join(COLUMNS[k].lower() for k in kinds)}.{cut}",
        charts.dots(points, [COLUMNS[kind] for kind in kinds], task.headline, x_format=axes.number_format(task)),
        table(
            ["Client", "Test examples", *(COLUMNS[kind] for kind in kinds)],
            [(r["client"], r["num_examples"], *(_shown(run, r[k]) for k in kinds)) for r in rows],
        ),
    )
    means = ", ".join(f"{COLUMNS[k].lower()} {task.show(v)}" for k, v in beside["mean"].items() if v is not None)
    said = [*([f"Means over {beside['num_compared']} clients: {means}."] if means else []), *said]
    if "local" in kinds:
        pairs = [(r["local"], r[TOGETHER]) for r in rows if r["local"] is not None]
        better = sum(task.worse(together) < task.worse(alone) for alone, together in pairs)
        worse = sum(task.worse(together) > task.worse(alone) for alone, together in pairs)
        said.append(f"Together is better than alone for {better} of {len(pairs)} clients, and worse for {worse}.")
    return Section("Alone or together", tuple(said), figures=(figure,))


def _wanted(run: Run) -> list[str]:
    """The kinds that the run was asked for."""
    config = run.record.config
    return [*config.get("baselines", ()), *(["tuned"] if config.get("personalize") else [])]


def _shown(run: Run, value: float | None) -> str | None:
    return None if value is None else run.task.show(value)
