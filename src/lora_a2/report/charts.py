"""The kinds of pictures. Data are rows of plain values; fields have fixed names, so that no name of a user is one.

Colours are CSS variables, which the page sets for light and dark (see `page/style.css`); series differ in shape and dash too.
Heat maps use viridis, which keeps its order for the colour-blind and on either background.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from lora_a2.tasks.base import Task

Rows = Sequence[Mapping[str, Any]]

NUM_COLOURS = 8
PERCENT, PLAIN = ".1~%", ".4~g"
"""A share as 71.3%, without a needless zero; a number as 26.92."""
CONFIG: dict[str, Any] = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--text)",
        "titleColor": "var(--text)",
        "gridColor": "var(--line)",
        "domainColor": "var(--muted)",
        "tickColor": "var(--muted)",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelLimit": 150,
    },
    "legend": {
        "labelColor": "var(--text)",
        "titleColor": "var(--text)",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelLimit": 220,
    },
    "rule": {"color": "var(--muted)"},
    "text": {"color": "var(--text)", "fontSize": 12},
    "range": {"category": [f"var(--c{i})" for i in range(1, NUM_COLOURS + 1)]},
}
"""Vega-Lite's configuration, given to every chart."""


def number_format(task: Task) -> str:
    """How values of a task's primary metric are written on axes."""
    return PERCENT if task.is_fraction() else PLAIN


def lines(rows: Rows, y: str, *, y_format: str, x: str = "Server round", logarithmic: bool = False) -> dict[str, Any]:
    """Rows of x, y, series: a line with points a series. `y` and `x` are the axes' titles; x are whole rounds or bytes."""
    names = list(dict.fromkeys(row["series"] for row in rows))
    if logarithmic:
        across = alt.X(
            "x:Q",
            title=x,
            scale=alt.Scale(type="log", nice=False),
            axis=alt.Axis(format="~s", labelOverlap=True, labelSeparation=8),
        )
    else:
        across = alt.X(
            "x:Q",
            title=x,
            axis=alt.Axis(format="d", tickMinStep=1, grid=False, labelFlush=False),
            scale=alt.Scale(nice=False),
        )
    base = alt.Chart(_data(rows)).encode(
        x=across,
        y=alt.Y("y:Q", title=y, axis=alt.Axis(format=y_format, tickCount=6), scale=alt.Scale(zero=False)),
        tooltip=[
            alt.Tooltip("series:N", title="Series"),
            alt.Tooltip("x:Q", title=x, format=",d"),
            alt.Tooltip("y:Q", title=y, format=y_format),
        ],
    )
    if len(names) == 1:
        marked = base.mark_line(color="var(--c1)") + base.mark_point(color="var(--c1)", filled=True, size=45)
        return _spec(marked)
    legend = alt.Legend(title=None, orient="bottom", columns=2, symbolStrokeWidth=0)
    order = alt.Scale(domain=names)  # the same for both, so that the legends of colour and shape become one
    hue = alt.Color("series:N", scale=order, legend=legend)
    drawn = base.mark_line().encode(hue, strokeDash=alt.StrokeDash("series:N", scale=order, legend=legend))
    shape = alt.Shape("series:N", scale=order, legend=legend)
    points = base.mark_point(filled=True, size=45).encode(hue, shape=shape)
    if len(names) > 3:
        drawn, points = _highlighted(drawn, points, names)
    return _spec(drawn + points)


def _highlighted(drawn: alt.Chart, points: alt.Chart, names: list[str]) -> tuple[alt.Chart, alt.Chart]:
    """A menu that lets one series stand out."""
    menu = alt.binding_select(options=[None, *names], labels=["all", *names], name="Highlight ")
    chosen = alt.param(name="highlight", value=None, bind=menu)
    shown = alt.when("highlight == null || datum.series == highlight").then(alt.value(1)).otherwise(alt.value(0.12))
    return drawn.encode(opacity=shown).add_params(chosen), points.encode(opacity=shown)


def with_front(spec: dict[str, Any], front: Rows) -> dict[str, Any]:
    """Lines with a Pareto front, rows of x and y, as a dotted staircase over them."""
    stairs = (
        alt.Chart(_data(front))
        .mark_line(interpolate="step-after", strokeDash=[2, 3], strokeWidth=2.5, color="var(--text)")
        .encode(x=alt.X("x:Q"), y=alt.Y("y:Q"))
    )
    layer = stairs.to_dict()
    added = {key: layer[key] for key in ("mark", "encoding")} | {"data": {"values": list(front)}}
    return {**spec, "layer": [*spec["layer"], added]}


def band(rows: Rows, y: str, *, y_format: str) -> dict[str, Any]:
    """Rows of x (server round), low, mid, high: the middle as a line in a band."""
    base = alt.Chart(_data(rows)).encode(
        x=alt.X("x:Q", title="Server round", axis=alt.Axis(format="d", tickMinStep=1, grid=False, labelFlush=False)),
        tooltip=[alt.Tooltip("x:Q", title="Server round")]
        + [alt.Tooltip(f"{k}:Q", title=k, format=y_format) for k in ("low", "mid", "high")],
    )
    up = alt.Y("low:Q", title=y, axis=alt.Axis(format=y_format))
    area = base.mark_area(color="var(--c1)", opacity=0.25).encode(y=up, y2="high:Q")
    middle = alt.Y("mid:Q", title=y)
    drawn = base.mark_line(color="var(--c1)").encode(y=middle)
    return _spec(area + drawn + base.mark_point(color="var(--c1)", filled=True, size=45).encode(y=middle))


def bars(rows: Rows, x: str, *, x_format: str, rule: float | None = None) -> dict[str, Any]:
    """Rows of name and value, from 0 on, a horizontal bar each in their order; `rule` is marked across them. A share's axis
    ends at 1."""
    base = alt.Chart(_data(rows))
    names = [row["name"] for row in rows]
    scale, ticks = (alt.Scale(domain=[0, 1]), ".0%") if x_format == PERCENT else (alt.Scale(zero=True), x_format)
    drawn = base.mark_bar(color="var(--c1)", height={"band": 0.7}).encode(
        x=alt.X("value:Q", title=x, axis=alt.Axis(format=ticks, tickCount=5), scale=scale),
        y=alt.Y("name:N", title=None, sort=names, axis=alt.Axis(grid=False)),
        tooltip=[alt.Tooltip("name:N", title="Client"), alt.Tooltip("value:Q", title=x, format=x_format)],
    )
    chart: alt.Chart | alt.LayerChart = drawn
    if rule is not None:
        mean = alt.Chart(_data([{"value": rule}])).mark_rule(strokeDash=[4, 3], strokeWidth=2, color="var(--text)")
        chart = drawn + mean.encode(x="value:Q")
    return _spec(chart, height=20 * len(names))


def histogram(rows: Rows, x: str, *, x_format: str) -> dict[str, Any]:
    """Rows of value: how many fall in each twentieth of 0..1 if they are shares, else of round steps, about twenty."""
    share = x_format == PERCENT
    bins, ticks = (alt.Bin(step=0.05, extent=[0, 1]), ".0%") if share else (alt.Bin(maxbins=20), x_format)
    drawn = (
        alt.Chart(_data(rows))
        .mark_bar(color="var(--c1)")
        .encode(
            x=alt.X("value:Q", bin=bins, title=x, axis=alt.Axis(format=ticks)),
            y=alt.Y("count():Q", title="Clients", axis=alt.Axis(tickMinStep=1, format="d")),
        )
    )
    return _spec(drawn)


def heat_map(
    rows: Rows,
    titles: tuple[str, str, str],
    *,
    value_format: str,
    numbers: bool = False,
    domain: tuple[float, float] | None = None,
    root: bool = False,
    rounds: int | None = None,
    step: int = 22,
) -> dict[str, Any]:
    """Rows of x, y, value, a cell each, in their order; `titles` are those of the three. `numbers` writes the values into the cells, `root` colours by their
    square root; `rounds`: rows have a round too, 0 for the mean, and a slider from 0 to `rounds` chooses."""
    x, y, value = titles
    across, down = (list(dict.fromkeys(row[key] for row in rows)) for key in ("x", "y"))
    base = alt.Chart(_data(rows)).encode(
        x=alt.X("x:N", title=x, sort=across, axis=alt.Axis(labelAngle=-40 if _long(across) else 0, labelOverlap=True)),
        y=alt.Y("y:N", title=y, sort=down, axis=alt.Axis(labelOverlap=True)),
        tooltip=[
            alt.Tooltip("y:N", title=y),
            alt.Tooltip("x:N", title=x),
            alt.Tooltip("value:Q", title=value, format=value_format),
        ],
    )
    values = [row["value"] for row in rows]
    low, high = domain or (0, max(values, default=1) or 1)
    scale = alt.Scale(scheme="viridis", domain=[low, high], type="sqrt" if root else "linear")
    legend = alt.Legend(title=value, orient="bottom", format=value_format, gradientLength=120, tickCount=4)
    chart: alt.Chart | alt.LayerChart = base.mark_rect().encode(color=alt.Color("value:Q", scale=scale, legend=legend))
    if numbers:
        middle = (low + high) / 2
        ink = alt.when(f"datum.value > {middle}").then(alt.value("#000")).otherwise(alt.value("#fff"))
        chart = chart + base.mark_text(fontSize=11).encode(alt.Text("value:Q", format=value_format), color=ink)
    if rounds:
        slider = alt.binding_range(min=0, max=rounds, step=1, name="Server round (0: mean of all) ")
        chosen = alt.param(name="server_round", value=0, bind=slider)
        chart = chart.add_params(chosen).transform_filter("datum.round == server_round")
    return _spec(chart, height=step * len(down))


def _long(names: Sequence[str]) -> bool:
    return sum(len(str(name)) for name in names) > 30


def _data(rows: Rows) -> alt.InlineData:
    return alt.InlineData(values=[dict(row) for row in rows])


def _spec(chart: alt.Chart | alt.LayerChart, height: int = 280) -> dict[str, Any]:
    """As wide as there is room."""
    return dict(chart.properties(width="container", height=height).to_dict())
