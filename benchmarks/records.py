"""Results as JSON, each figure with its origin; and the table of docs/benchmarks.md."""

from __future__ import annotations

import json
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from figures import FIGURES, median_text, range_text, reached
from pairs import Measured

PACKAGES = ("lora-a2", "torch", "transformers", "peft", "numpy")


def processor() -> str:
    """The CPU's model and its relevant features."""
    found: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    flags = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in found.get("flags", "").split()]
    family = f"family {found.get('cpu family', '?')} model {found.get('model', '?')}"
    return f"{found.get('model name', platform.processor())} ({family}; {', '.join(flags)})"


def origin(options: Mapping[str, Any], accelerator: str | None) -> dict[str, Any]:
    """The part of a figure's entry that describes the run. Paths are left out."""
    return {
        "command": command(sys.argv),
        "date": datetime.now(UTC).date().isoformat(),
        "options": {name: value for name, value in options.items() if not isinstance(value, Path)},
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "accelerator": accelerator,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def command(arguments: list[str]) -> str:
    """The command line as others can type it: folders are named by their content."""
    folders = {"--data": "BANKING77_FOLDER", "--tokenizer": "TOKENIZER_FOLDER", "--e2e": "E2E_FOLDER"}
    shown = [folders.get(before, given) for before, given in pairwise(arguments)]
    return f"python benchmarks/run.py {shlex.join(shown)}".strip()


def merge(path: Path, measured: Mapping[str, Measured], origin: Mapping[str, Any]) -> None:
    """Replaces the measured figures in the file; the others stay."""
    kept = json.loads(path.read_text()) if path.is_file() else {}
    for name, found in measured.items():
        kept[name] = {**asdict(found), "median": statistics.median(found.values), **origin}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({name: kept[name] for name in FIGURES if name in kept}, indent=2) + "\n")


def table(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: a row for each figure, measured or not."""
    rows = ["| figure | what | median | range | goal | reached | date |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for name, figure in FIGURES.items():
        goal = figure.goal_text.removeprefix("goal ")
        entry = entries.get(name)
        if entry is None:
            rows.append(f"| `{name}` | {figure.what} | not measured | | {goal} | | |")
            continue
        values = entry["values"]
        met = "" if figure.goal is None else "yes" if reached(figure, values) else "no"
        rows.append(
            f"| `{name}` | {figure.what} | {median_text(values)} | {range_text(values)} | {goal} | {met} | {entry['date']} |"
        )
    return "\n".join(rows)


def origins(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: the runs behind the table, each once."""
    runs: dict[str, list[str]] = {}
    for name, entry in entries.items():
        versions = ", ".join(f"{package} {number}" for package, number in entry["packages"].items())
        place = f"{entry['cores']} cores of {entry['processor']}"
        if entry["accelerator"]:
            place += f", {entry['accelerator']}"
        text = f"`{entry['command']}` on {entry['date']}, {place}; Python {entry['python']}, {versions}"
        runs.setdefault(text, []).append(f"`{name}`")
    return "\n".join(f"- {', '.join(names)}: {text}" for text, names in runs.items()) or "- nothing yet"
