"""Curves: what they look like, and their picture. A colour says one thing, a dash another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import altair as alt

from lora_a2.report.axes import Across, tick_format
from lora_a2.report.charts import NUM_COLOURS, Rows, data, spec

SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
DASHES = ([1, 0], [6, 3], [2, 2], [10, 3, 2, 3], [12, 4], [4, 2, 1, 2, 1, 2])


class At(NamedTuple):
    """A point of a curve; `low` to `high` is the band around it, None where there is none."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Curve:
    """A line with its points. Those of one `colour` have one colour and shape, those of one `dash` one dash."""

    name: str
    points: Sequence[At]
    colour: str = ""
    dash: str = ""


@dataclass(frozen=True)
class Reading:
    """How a picture of curves is read.

    Attributes:
        y: the vertical axis' title.
        y_format: of its numbers, d3's.
        colour, dash: titles of the legends, None without one.
        band: what the ends of the bands are called.
    """

    y: str
    y_format: str
    colour: str | None = None
    dash: str | None = None
    band: tuple[str, str] = ("Low", "High")


def lines(curves: Sequence[Curve], across: Across, reading: Reading) -> dict[str, Any]:
    """The picture of `curves`, bands below lines below points."""
    rows = [_row(curve, point, across, reading) for curve in curves for point in curve.points]
    bands = [row for row in rows if row["low"] is not None]
    ends = [f"{name}:Q" for name in ("low", "high")]
    tips = [
        *([alt.Tooltip("series:N", title="Series")] if len(curves) > 1 else []),
        alt.Tooltip("at:N", title=across.title),
        alt.Tooltip("y:Q", title=reading.y, format=reading.y_format),
    ]
    if bands:
        tips += [
            alt.Tooltip(f, title=name, format=reading.y_format) for f, name in zip(ends, reading.band, strict=True)
        ]
    looks = _Looks(curves, reading)
    base = alt.Chart(data(rows)).encode(x=across.encoding, detail="series:N", tooltip=tips, description="said:N")
    up = alt.Axis(format=tick_format(reading.y_format), tickCount=6)
    y = alt.Y("y:Q", title=reading.y, axis=up, scale=alt.Scale(zero=False))
    drawn = base.mark_line().encode(y, *looks.of_lines())
    points = base.mark_point(filled=True, size=45, opacity=1).encode(y, *looks.of_points())
    layers = [drawn, points]
    if bands:
        area = alt.Chart(data(bands)).mark_area(opacity=0.15)
        ribbon = alt.Y("low:Q", title=reading.y, axis=up, scale=alt.Scale(zero=False))
        area = area.encode(across.encoding, ribbon, alt.Y2("high:Q"), alt.Detail("series:N"), looks.colour())
        layers = [area, *layers]
    if len(curves) > 3:
        layers = _highlighted(layers, [curve.name for curve in curves])
    return spec(alt.LayerChart(layer=layers))


def with_front(picture: dict[str, Any], front: Rows) -> dict[str, Any]:
    """Lines with a Pareto front, rows of x and y, as a dotted staircase over them."""
    stairs = (
        alt.Chart(data(front))
        .mark_line(interpolate="step-after", strokeDash=[2, 3], strokeWidth=2.5, color="var(--text)")
        .encode(x=alt.X("x:Q"), y=alt.Y("y:Q"))
    )
    layer = stairs.to_dict()
    added = {key: layer[key] for key in ("mark", "encoding")} | {"data": {"values": list(front)}}
    return {**picture, "layer": [*picture["layer"], added]}


def _row(curve: Curve, point: At, across: Across, reading: Reading) -> dict[str, Any]:
    at = across.show(point.x)
    value = f"{100 * point.y:.1f} %" if reading.y_format.endswith("%") else f"{point.y:.4g}"
    said = ", ".join(text for text in (curve.name, f"{across.title}: {at}", f"{reading.y}: {value}") if text)
    looks = {"series": curve.name, "colour": curve.colour, "dash": curve.dash}
    return {**looks, "x": point.x, "y": point.y, "low": point.low, "high": point.high, "at": at, "said": said}


class _Looks:
    """Which channels tell the curves apart. Domains are the same in every layer, so that legends of one thing become one."""

    def __init__(self, curves: Sequence[Curve], reading: Reading) -> None:
        self._colours = list(dict.fromkeys(curve.colour for curve in curves))
        self._dashes = list(dict.fromkeys(curve.dash for curve in curves))
        self._same = all(curve.colour == curve.dash for curve in curves)
        self._reading = reading

    def colour(self) -> Any:
        if len(self._colours) == 1:
            return alt.ColorValue("var(--c1)")
        hues = [f"var(--c{k % NUM_COLOURS + 1})" for k in range(len(self._colours))]
        return alt.Color("colour:N", scale=self._scale(self._colours, hues), legend=self._legend(self._reading.colour))

    def of_lines(self) -> tuple[Any, ...]:
        if len(self._dashes) == 1:
            return (self.colour(),)
        patterns = [DASHES[k % len(DASHES)] for k in range(len(self._dashes))]
        field, title = ("colour", self._reading.colour) if self._same else ("dash", self._reading.dash)
        legend = (
            self._legend(title) if self._same else self._legend(title, symbolType="stroke", symbolSize=400, columns=1)
        )
        return self.colour(), alt.StrokeDash(f"{field}:N", scale=self._scale(self._dashes, patterns), legend=legend)

    def of_points(self) -> tuple[Any, ...]:
        if len(self._colours) == 1:
            return (self.colour(),)
        # From the ninth on colours come again, with another shape.
        marks = [SHAPES[(k + k // NUM_COLOURS) % len(SHAPES)] for k in range(len(self._colours))]
        legend = self._legend(self._reading.colour)
        return self.colour(), alt.Shape("colour:N", scale=self._scale(self._colours, marks), legend=legend)

    def _scale(self, domain: Sequence[str], values: Sequence[Any]) -> alt.Scale:
        return alt.Scale(domain=list(domain), range=list(values))

    def _legend(self, title: str | None, **own: Any) -> alt.Legend:
        own = {"symbolOpacity": 1, **(own or {"symbolStrokeWidth": 0})}
        return alt.Legend(title=title, orient="bottom", **{"columns": 2, **own})


def _highlighted(layers: Sequence[alt.Chart], names: Sequence[str]) -> list[alt.Chart]:
    """A menu that lets one series stand out."""
    menu = alt.binding_select(options=[None, *names], labels=["all", *names], name="Highlight ")
    chosen = alt.param(name="highlight", value=None, bind=menu)
    shown = alt.when("highlight == null || datum.series == highlight")
    faint = [
        layer.encode(opacity=shown.then(alt.value(_opacity(layer))).otherwise(alt.value(_opacity(layer) * 0.12)))
        for layer in layers
    ]
    return [*faint[:-1], faint[-1].add_params(chosen)]


def _opacity(layer: alt.Chart) -> float:
    found = layer.to_dict()["mark"].get("opacity", 1)
    return float(found)
