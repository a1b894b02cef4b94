"""Heat maps: a cell for each pair of a row and a column, coloured by a number.

The colours are viridis, which keeps its order for the colour-blind and on either background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from lora_a2.report.charts import Rows, data, spec


@dataclass(frozen=True)
class Grid:
    """What a heat map shows.

    Attributes:
        across, down: names of the columns from left to right, and of the rows from top to bottom, cells or not.
        cells: rows of x, y, value; of pairs without a value there is none. With `rounds` a round too, 0 for the mean.
        titles: of columns, rows and values.
        value_format: of the values, d3's.
        notes: field → title of what else the cells have, for whoever points at them.
    """

    across: Sequence[str]
    down: Sequence[str]
    cells: Rows
    titles: tuple[str, str, str]
    value_format: str
    notes: tuple[tuple[str, str], ...] = ()


def heat_map(
    grid: Grid,
    *,
    numbers: bool = False,
    domain: tuple[float, float] | None = None,
    root: bool = False,
    rounds: int | None = None,
    step: int = 22,
) -> dict[str, Any]:
    """The picture of `grid`. `numbers` writes the values into the cells, `root` colours by their square root; a slider from
    0 to `rounds` chooses the round."""
    x, y, value = grid.titles
    angle = -40 if sum(len(name) for name in grid.across) > 30 else 0
    across = alt.X(
        "x:N", title=x, scale=alt.Scale(domain=list(grid.across)), axis=alt.Axis(labelAngle=angle, labelOverlap=True)
    )
    down = alt.Y("y:N", title=y, scale=alt.Scale(domain=list(grid.down)), axis=alt.Axis(labelOverlap=True))
    tips = [
        alt.Tooltip("y:N", title=y),
        alt.Tooltip("x:N", title=f"With {x.lower()}" if x == y else x),
        alt.Tooltip("value:Q", title=value, format=grid.value_format),
        *(alt.Tooltip(f"{field}:N", title=title) for field, title in grid.notes),
    ]
    base = alt.Chart(data(grid.cells)).encode(x=across, y=down, tooltip=tips)
    low, high = domain or (0, max((row["value"] for row in grid.cells), default=1) or 1)
    scale = alt.Scale(scheme="viridis", domain=[low, high], type="sqrt" if root else "linear")
    legend = alt.Legend(title=value, orient="bottom", format=grid.value_format, gradientLength=180, tickCount=3)
    chart: alt.Chart | alt.LayerChart = base.mark_rect().encode(color=alt.Color("value:Q", scale=scale, legend=legend))
    if numbers:
        middle = (low + high) / 2
        ink = alt.when(f"datum.value > {middle}").then(alt.value("#000")).otherwise(alt.value("#fff"))
        chart = chart + base.mark_text(fontSize=11).encode(alt.Text("value:Q", format=grid.value_format), color=ink)
    if rounds:
        slider = alt.binding_range(min=0, max=rounds, step=1, name="Server round (0: mean of all) ")
        chosen = alt.param(name="server_round", value=0, bind=slider)
        chart = chart.add_params(chosen).transform_filter("datum.round == server_round")
    return spec(chart, height=step * len(grid.down))
