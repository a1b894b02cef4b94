"""The kinds of pictures. Data are rows of plain values; fields have fixed names, so that no name of a user is one.

Colours are CSS variables, which the page sets for light and dark (see `page/style.css`); series differ in shape or dash too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from lora_a2.report.axes import PERCENT

Rows = Sequence[Mapping[str, Any]]

NUM_COLOURS = 8
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
        "labelLimit": 260,
        "layout": {"bottom": {"direction": "vertical", "anchor": "start"}},
    },
    "rule": {"color": "var(--muted)"},
    "text": {"color": "var(--text)", "fontSize": 12},
    "range": {"category": [f"var(--c{i})" for i in range(1, NUM_COLOURS + 1)]},
}
"""Vega-Lite's configuration, given to every chart."""


def bars(rows: Rows, x: str, *, x_format: str, rule: float | None = None) -> dict[str, Any]:
    """Rows of name and value, from 0 on, a horizontal bar each in their order, with a whisker from low to high if they have
    these; `rule` is marked across them. A share's axis ends at 1."""
    base = alt.Chart(data(rows))
    names = [row["name"] for row in rows]
    scale, ticks = (alt.Scale(domain=[0, 1]), ".0%") if x_format == PERCENT else (alt.Scale(zero=True), x_format)
    whiskers = [row for row in rows if "low" in row]
    drawn = base.mark_bar(color="var(--c1)", height={"band": 0.7}, opacity=0.75 if whiskers else 1).encode(
        x=alt.X("value:Q", title=x, axis=alt.Axis(format=ticks, tickCount=5), scale=scale),
        y=alt.Y("name:N", title=None, sort=names, axis=alt.Axis(grid=False)),
        tooltip=[
            alt.Tooltip("name:N", title="Client"),
            alt.Tooltip("value:Q", title=x, format=x_format),
            *(alt.Tooltip("interval:N", title="95 % interval") for _ in whiskers[:1]),
            *(alt.Tooltip("examples:Q", title="Test examples", format=",d") for _ in whiskers[:1]),
        ],
    )
    chart: alt.Chart | alt.LayerChart = drawn
    if whiskers:
        reach = alt.Chart(data(whiskers)).mark_rule(strokeWidth=2, color="var(--text)")
        chart = drawn + reach.encode(x="low:Q", x2="high:Q", y=alt.Y("name:N", sort=names))
    if rule is not None:
        mean = alt.Chart(data([{"value": rule}])).mark_rule(strokeDash=[4, 3], strokeWidth=2, color="var(--text)")
        chart = chart + mean.encode(x="value:Q")
    return spec(chart, height=20 * len(names))


def dots(rows: Rows, kinds: Sequence[str], x: str, *, x_format: str) -> dict[str, Any]:
    """Rows of name, value, kind and said, all of it in words: a line for each name, a point on it for each kind. Kinds, in the
    order of the legend, differ in colour and shape."""
    names = list(dict.fromkeys(row["name"] for row in rows))
    y = alt.Y("name:N", title=None, sort=names, axis=alt.Axis(grid=False), scale=alt.Scale(padding=0.35))
    shapes = ["circle", "square", "triangle-up", "diamond"][: len(kinds)]
    hues = [f"var(--c{k + 1})" for k in range(len(kinds))]
    legend = alt.Legend(title=None, orient="bottom", direction="horizontal", symbolOpacity=1)
    base = alt.Chart(data(rows))
    reach = base.mark_rule(color="var(--line)", strokeWidth=2).encode(x="min(value):Q", x2="max(value):Q", y=y)
    points = base.mark_point(filled=True, size=70, opacity=1).encode(
        x=alt.X("value:Q", title=x, axis=alt.Axis(format=x_format, tickCount=5), scale=alt.Scale(zero=False)),
        y=y,
        yOffset=alt.YOffset("kind:N", scale=alt.Scale(domain=list(kinds))),  # equal values stay apart
        color=alt.Color("kind:N", scale=alt.Scale(domain=list(kinds), range=hues), legend=legend),
        shape=alt.Shape("kind:N", scale=alt.Scale(domain=list(kinds), range=shapes), legend=legend),
        description="said:N",
        tooltip=[
            alt.Tooltip("name:N", title="Client"),
            alt.Tooltip("kind:N", title="Model"),
            alt.Tooltip("value:Q", title=x, format=x_format),
        ],
    )
    return spec(reach + points, height=(12 * len(kinds) + 10) * len(names))


def histogram(rows: Rows, x: str, *, x_format: str) -> dict[str, Any]:
    """Rows of value: how many fall in each twentieth of 0..1 if they are shares, else of round steps, about twenty."""
    share = x_format == PERCENT
    bins, ticks = (alt.Bin(step=0.05, extent=[0, 1]), ".0%") if share else (alt.Bin(maxbins=20), x_format)
    drawn = (
        alt.Chart(data(rows))
        .mark_bar(color="var(--c1)")
        .encode(
            x=alt.X("value:Q", bin=bins, title=x, axis=alt.Axis(format=ticks)),
            y=alt.Y("count():Q", title="Clients", axis=alt.Axis(tickMinStep=1, format="d")),
        )
    )
    return spec(drawn)


def data(rows: Rows) -> alt.InlineData:
    """Rows as they stand in the page."""
    return alt.InlineData(values=[dict(row) for row in rows])


def spec(chart: alt.Chart | alt.LayerChart, height: int = 280) -> dict[str, Any]:
    """As wide as there is room."""
    return dict(chart.properties(width="container", height=height).to_dict())
