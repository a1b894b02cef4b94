"""From runs to the text of a page that needs nothing else: script, style and data are in it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lora_a2.report.blocks import Section
from lora_a2.report.charts import CONFIG
from lora_a2.report.detail import detail
from lora_a2.report.inputs import Run
from lora_a2.report.overview import overview

MAX_DETAILED = 24
"""Runs with sections of their own, the best; a page of hundreds would open slowly."""
_NUMBER = re.compile(r"[+−-]?\d([\d.,:–±\- ]|%|of|points|[kMGT]?B)*")
"""A cell that is all numbers and units, and so is right-aligned; a text that begins with one is not."""


@dataclass(frozen=True)
class _Part:
    """A run's sections."""

    name: str
    sections: Sequence[Section]


def render(runs: Sequence[Run], not_begun: Sequence[Path] = (), more: Sequence[Section] = ()) -> str:
    """The page: HTML that opens from a file, without a network.

    Args:
        runs: as `find_runs` returns them.
        not_begun: likewise.
        more: further sections on all of them, see `batches.batch_sections`.
    """
    ranked = sorted(runs, key=lambda run: run.worse)[:MAX_DETAILED]
    parts = [_Part(run.name, detail(run, alone=len(runs) == 1)) for run in runs if run in ranked]
    environment = Environment(
        loader=PackageLoader("lora_a2.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["number"] = lambda cell: isinstance(cell, int | float) or bool(_NUMBER.fullmatch(str(cell)))
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    return environment.get_template("page.html").render(
        title=f"{title} · lora-a2",
        heading=title,
        subtitle=_subtitle(runs),
        overview=[*overview(runs, not_begun), *more],
        parts=parts,
        left_out=len(runs) - len(parts),
        config=CONFIG,
        style=Markup(_text("style.css")),
        script=Markup(_text("charts.js")),
        library=Markup(vl_convert.javascript_bundle()),  # type: ignore[call-arg]  # its stub forgets the default
        version=version("lora-a2"),
        written=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )


def _subtitle(runs: Sequence[Run]) -> str:
    """What was trained on what, as far as all runs agree."""

    def shared(key: str) -> str | None:
        values = {str(run.record.config.get(key)) for run in runs}
        return values.pop() if len(values) == 1 else None

    model, data = _called(shared("model")) or "several models", _called(shared("data")) or "several data sets"
    parts = [shared("method"), f"{model} on {data}"]
    parts.append(f"{shared('num-clients')} clients" if shared("num-clients") else None)
    dates = sorted({run.date for run in runs if run.date is not None})
    parts.append(" to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else None)
    return ", ".join(part for part in parts if part)


def _called(name: str | None) -> str | None:
    """A file or a folder by its last part."""
    return Path(name).name if name and Path(name).is_absolute() else name


def _text(name: str) -> str:
    return (files("lora_a2.report") / "page" / name).read_text(encoding="utf-8")
