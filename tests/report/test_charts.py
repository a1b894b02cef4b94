"""What the pictures say: their axes, their order, their colours and bands; in the specification, and as a browser draws it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from lora_a2.analysis.intervals import client_intervals, interval, wilson
from lora_a2.analysis.record import RoundAnalysis
from lora_a2.tasks import causal_lm, classification

pytest.importorskip("altair", reason="the report is an extra")
vl_convert = pytest.importorskip("vl_convert", reason="the report is an extra")

from lora_a2.report.axes import PERCENT, byte_ticks, rounds, whole_ticks  # noqa: E402
from lora_a2.report.blocks import Figure, Section, table, trimmed  # noqa: E402
from lora_a2.report.charts import histogram  # noqa: E402
from lora_a2.report.curves import At, Curve, Reading, lines  # noqa: E402
from lora_a2.report.detail import detail  # noqa: E402
from lora_a2.report.groups import grouped  # noqa: E402
from lora_a2.report.inputs import Run  # noqa: E402
from lora_a2.report.matrices import similarity  # noqa: E402
from lora_a2.report.overview import overview  # noqa: E402
from lora_a2.report.render import render  # noqa: E402

BYTES = r"\d+(\.\d+)? ([kMGT]?B)"


def layers(spec: Mapping[str, Any], mark: str) -> list[Mapping[str, Any]]:
    """The layers of a picture with that mark."""
    return [layer for layer in spec.get("layer", [spec]) if layer["mark"]["type"] == mark]


def values(spec: Mapping[str, Any], layer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows behind a layer."""
    data = layer.get("data", spec.get("data"))
    assert data is not None
    found: list[dict[str, Any]] = data["values"] if "values" in data else spec["datasets"][data["name"]]
    return found


def drawn_labels(spec: Mapping[str, Any], title: str) -> list[str]:
    """What stands along the axis with that title, as Vega draws it."""
    drawn = ElementTree.fromstring(vl_convert.vegalite_to_svg({**spec, "width": 500}))

    def texts(group: ElementTree.Element, role: str) -> list[str]:
        parts = [part for part in group.iter() if role in part.get("class", "").split()]
        return ["".join(text.itertext()) for part in parts for text in part.iter("{http://www.w3.org/2000/svg}text")]

    axes = [group for group in drawn.iter() if "role-axis" in group.get("class", "").split()]
    (found,) = [texts(axis, "role-axis-label") for axis in axes if texts(axis, "role-axis-title") == [title]]
    return found


def variant(run: Run, name: str, scores: Sequence[float], **config: Any) -> Run:
    """A run with another name, other options, and the given accuracies round by round, as many examples right as that makes
    of 200."""
    lines = [
        replace(record, metrics={**record.metrics, "accuracy": score, "num_examples": 200})
        for record, score in zip(run.record.rounds, scores, strict=True)
    ]
    options = {**run.record.config, **{key.replace("_", "-"): value for key, value in config.items()}}
    return Run(name, replace(run.record, rounds=tuple(lines), config=options))


@pytest.fixture
def lucky(runs: list[Run]) -> list[Run]:
    """Two methods at two rates: fl-lora has the best run of all, but not the best mean."""
    base = next(run for run in runs if not run.is_full)
    made = []
    for method, rate, finals in (
        ("fl-lora", 0.01, (0.95, 0.35)),
        ("lora-a2", 0.01, (0.72, 0.7)),
        ("fl-lora", 0.1, (0.4, 0.5)),
        ("lora-a2", 0.1, (0.3, 0.32)),
    ):
        for seed, final in enumerate(finals):
            scores = np.linspace(0.2, final, 3).tolist()
            name = f"{method}-{rate}-{seed}"
            made.append(variant(base, name, scores, method=method, learning_rate=rate, seed=seed))
    return made


def test_ticks_of_rounds_are_whole_numbers_once() -> None:
    draw = np.random.default_rng(0)
    for _ in range(300):
        first = int(draw.integers(1, 50))
        last = first + int(draw.integers(0, 10 ** draw.integers(1, 5)))
        ticks = whole_ticks(first, last)
        assert ticks[0] == first and ticks[-1] <= last
        assert all(isinstance(tick, int) for tick in ticks)
        assert ticks == sorted(set(ticks)) and len(ticks) <= 9
        assert len(ticks) >= 3 or last - first < 2
    assert whole_ticks(1, 3) == [1, 2, 3]
    assert whole_ticks(1, 50) == [1, 10, 20, 30, 40, 50]


@pytest.mark.parametrize("last", [1, 2, 3, 7, 50, 400])
def test_an_axis_of_rounds_is_drawn_with_its_ticks(last: int) -> None:
    curve = Curve("one", [At(x, x / last) for x in range(1, last + 1)])
    spec = lines([curve], rounds([1, last]), Reading("Accuracy", ".1~%"))
    assert drawn_labels(spec, "Server round") == [str(tick) for tick in whole_ticks(1, last)]


@pytest.mark.parametrize(("low", "high"), [(0.7131, 0.7139), (0, 1), (0.4, 0.41), (0.71, 0.71)])
def test_an_axis_of_shares_says_each_once(low: float, high: float) -> None:
    curve = Curve("one", [At(1, low), At(2, high)])
    labels = drawn_labels(lines([curve], rounds([1, 2]), Reading("Accuracy", ".1~%")), "Accuracy")
    assert labels and len(labels) == len(set(labels))
    assert all(re.fullmatch(r"\d+(\.\d+)?%", label) for label in labels)


@pytest.mark.parametrize("size", [41, 45, 300])
def test_clients_are_counted_in_whole_numbers_once(size: int) -> None:
    rows = [{"value": float(value)} for value in np.random.default_rng(3).random(size)]
    labels = drawn_labels(histogram(rows, "Accuracy", x_format=PERCENT), "Clients")
    assert labels == [str(n) for n in sorted({int(label) for label in labels})]


def test_ticks_of_bytes_are_few_round_and_between() -> None:
    draw = np.random.default_rng(1)
    for _ in range(300):
        low = float(10 ** draw.uniform(1, 10))
        high = low * float(10 ** draw.uniform(0.05, 4))
        ticks = byte_ticks(low, high)
        assert 2 <= len(ticks) <= 8
        assert ticks == sorted(set(ticks))
        assert low <= ticks[0] and ticks[-1] <= high
    assert byte_ticks(4e5, 6e6) == [5e5, 1e6, 2e6, 5e6]


def test_byte_axes_say_their_unit(lucky: list[Run]) -> None:
    figure = overview(lucky)[0].figures[1]
    labels = drawn_labels(figure.spec, "Uploaded so far (logarithmic)")
    assert len(labels) >= 2
    assert all(re.fullmatch(BYTES, label) for label in labels)
    assert "bytes" not in str(figure.spec["layer"][0]["encoding"]["x"]["title"])


def test_rounds_without_uploads_have_no_place_among_bytes(lucky: list[Run]) -> None:
    """Where every reply was refused, and nothing had been uploaded yet."""

    def idle(run: Run, rounds: int) -> Run:
        lines = [replace(r, uploaded_bytes=0) if r.server_round <= rounds else r for r in run.record.rounds]
        return Run(run.name, replace(run.record, rounds=tuple(lines)))

    by_round, by_bytes = overview([idle(run, 1) for run in lucky])[0].figures
    shown = {name: {row[1] for row in figure.table.rows} for name, figure in (("round", by_round), ("bytes", by_bytes))}
    assert shown == {"round": {1, 2, 3}, "bytes": {2, 3}}
    assert all(row["x"] > 0 for row in values(by_bytes.spec, layers(by_bytes.spec, "line")[0]))
    assert len(overview([idle(run, 3) for run in lucky])[0].figures) == 1


def test_the_metric_by_round_comes_first(lucky: list[Run], runs: list[Run]) -> None:
    for shown in (lucky, runs, runs[:1]):
        first = overview(shown)[0]
        assert first.title == "Accuracy"
        assert first.figures[0].title.startswith("Accuracy per round")
        text = render(shown)
        assert text.index("<h3>Accuracy per round") < text.index("<table>")


def test_the_best_is_the_best_mean_not_the_luckiest_seed(lucky: list[Run]) -> None:
    first, over, summary = overview(lucky)
    assert first.sentences[0].startswith(
        "Of 4 settings, lora-a2, learning-rate 0.01 is the best by its mean: 71.0 % accuracy over 2 seeds (from 70.0 % to "
        "72.0 %) on 200 test examples, on average with "
    )
    assert [row[0] for row in over.tables[0][1].rows] == [
        "lora-a2, learning-rate 0.01",
        "fl-lora, learning-rate 0.01",
        "fl-lora, learning-rate 0.1",
        "lora-a2, learning-rate 0.1",
    ]
    assert summary.tables[0][1].rows[0][0] == "fl-lora-0.01-0", "run by run the table says which was the best"


def test_runs_that_are_not_finished_do_not_count_beside_finished_ones(lucky: list[Run]) -> None:
    begun = replace(lucky[2].record, rounds=lucky[2].record.rounds[:1])
    (group,) = grouped([Run("begun", begun), lucky[3]])
    assert [run.name for run in group.counted] == ["lora-a2-0.01-1"]
    assert group.score == pytest.approx(0.7)
    said = overview([Run("begun", begun), lucky[3]])[0].sentences
    assert "over 1 of 2 seeds" in said[0] and said[1] == "Not finished: begun."


def test_a_colour_is_a_method_a_dash_a_rate_and_a_band_the_seeds(lucky: list[Run]) -> None:
    spec = overview(lucky)[0].figures[0].spec
    (line,), (points,), (area,) = (layers(spec, mark) for mark in ("line", "point", "area"))
    colour, dash = line["encoding"]["color"], line["encoding"]["strokeDash"]
    assert colour["scale"]["domain"] == ["lora-a2", "fl-lora"]
    assert len(set(colour["scale"]["range"])) == 2
    assert dash["scale"]["domain"] == ["learning-rate 0.01", "learning-rate 0.1"]
    assert len({str(pattern) for pattern in dash["scale"]["range"]}) == 2
    assert points["encoding"]["shape"]["scale"]["domain"] == colour["scale"]["domain"]
    rows = values(spec, line)
    assert {(row["colour"], row["dash"]) for row in rows} == {
        (method, rate) for method in colour["scale"]["domain"] for rate in dash["scale"]["domain"]
    }
    last = next(row for row in rows if row["series"] == "fl-lora, learning-rate 0.01" and row["x"] == 3)
    assert (last["low"], last["y"], last["high"]) == pytest.approx((0.35, 0.65, 0.95))
    assert last["said"] == "fl-lora, learning-rate 0.01, Server round: 3, Accuracy: 65.0 %"
    assert {row["series"] for row in values(spec, area)} == {row["series"] for row in rows}


def test_more_methods_than_colours_differ_in_shape() -> None:
    curves = [Curve(str(k), [At(1, k)], str(k)) for k in range(20)]
    (points,) = layers(lines(curves, rounds([1]), Reading("y", "d")), "point")
    looks = [points["encoding"][channel]["scale"]["range"] for channel in ("color", "shape")]
    assert len(set(zip(*looks, strict=True))) == 20


def test_one_method_s_rates_have_colour_and_dash(lucky: list[Run]) -> None:
    (line,) = layers(overview([run for run in lucky if run.record.method == "lora-a2"])[0].figures[0].spec, "line")
    assert line["encoding"]["color"]["scale"]["domain"] == ["learning-rate 0.01", "learning-rate 0.1"]
    assert line["encoding"]["strokeDash"]["field"] == line["encoding"]["color"]["field"]


def matrices(run: Run) -> dict[str, Figure]:
    return {figure.title: figure for figure in similarity(run).figures}


def with_pairs(run: Run, rounds_of: Sequence[tuple[int, ...]], cosine: float = 0.5) -> Run:
    """A run in whose rounds these clients took part, all of which moved alike and selected the same."""
    lines = [
        RoundAnalysis(
            n,
            ids,
            4,
            ("ff" * 12,) * len(ids),
            (1.0,) * len(ids),
            (cosine,) * (len(ids) * (len(ids) - 1) // 2),
            None,
            None,
        )
        for n, ids in enumerate(rounds_of, 1)
    ]
    return Run(run.name, replace(run.record, analyses=tuple(lines)))


def test_rows_and_columns_of_a_heat_map_have_one_order(runs: list[Run]) -> None:
    run = next(run for run in runs if not run.is_full)
    names = [client.name for client in sorted(run.record.clients, key=lambda client: client.id)]
    found = matrices(run)
    assert set(found) == {"Selected ranks alike", "Updates alike"}
    partly = matrices(with_pairs(run, [(0, 1), (1, 2, 3)]))
    for figure in (*found.values(), *partly.values()):
        across, down = (figure.spec["encoding"][axis]["scale"]["domain"] for axis in "xy")
        assert across == down == names
        assert figure.table.header[1:] == tuple(row[0] for row in figure.table.rows) == tuple(names)


def test_only_pairs_that_were_measured_are_drawn(runs: list[Run]) -> None:
    run = next(run for run in runs if not run.is_full)
    names = [client.name for client in sorted(run.record.clients, key=lambda client: client.id)]
    figure = matrices(with_pairs(run, [(0, 1), (1, 2, 3), (0, 1)]))["Updates alike"]
    cells = {(row["y"], row["x"]): row["rounds"] for row in values(figure.spec, figure.spec)}
    expected = {(0, 1): 2, (1, 2): 1, (1, 3): 1, (2, 3): 1}
    both_ways = {**expected, **{(j, i): n for (i, j), n in expected.items()}}
    assert cells == {(names[i], names[j]): n for (i, j), n in both_ways.items()}
    assert "A pair was measured in 1 to 2 rounds. Blank: 2 pairs" in figure.description
    assert figure.table.rows[0][3] is None


def test_a_picture_of_few_pairs_is_left_out_with_a_sentence(runs: list[Run]) -> None:
    run = next(run for run in runs if not run.is_full)
    section = similarity(with_pairs(run, [(0, 1), (2, 3)]))
    assert section.figures == ()
    assert section.sentences[1] == (
        "Updates alike: no picture, since only 2 of 6 pairs of clients ever took part in the same round."
    )


def test_colours_of_similarities_begin_at_nothing(runs: list[Run]) -> None:
    run = next(run for run in runs if not run.is_full)
    everyone = (0, 1, 2, 3)
    figure = matrices(with_pairs(run, [everyone], 0.93))["Updates alike"]
    assert figure.spec["encoding"]["color"]["scale"]["domain"] == [0, 0.93]
    assert "All are nearly alike, from 0.93 to 0.93; colours begin at 0." in figure.description
    opposed = matrices(with_pairs(run, [everyone], -0.4))["Updates alike"]
    assert opposed.spec["encoding"]["color"]["scale"]["domain"] == [-0.4, 0]
    nothing = matrices(with_pairs(run, [everyone], 0.001))["Updates alike"]
    assert nothing.spec["encoding"]["color"]["scale"]["domain"] == [0, 0.1], (
        "a thousandth is not made to look like much"
    )


def test_wilson_s_interval() -> None:
    assert wilson(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)  # Brown, Cai, DasGupta 2001
    draw = np.random.default_rng(2)
    for _ in range(100):
        total = int(draw.integers(1, 5000))
        right = int(draw.integers(0, total + 1))
        low, high = wilson(right / total, total)
        assert 0 <= low <= right / total <= high <= 1
        assert low < high
        wider = wilson(right / total, 4 * total)
        assert wider[1] - wider[0] < high - low


def test_only_shares_of_examples_have_an_interval() -> None:
    of = {"accuracy": 0.5, "macro_f1": 0.4, "num_examples": 10}
    assert interval(classification.TASK, of) == wilson(0.5, 10)
    assert interval(classification.TASK, of, "macro_f1") is None
    assert interval(classification.TASK, {"accuracy": 0.5}) is None, "nobody recorded of how many"
    assert interval(causal_lm.TASK, {"perplexity": 3.0, "num_examples": 10}) is None
    assert client_intervals(causal_lm.TASK, {"per_client": {"0": 3.0}, "per_client_examples": {"0": 4}}) == {}


def test_counts_and_intervals_stand_beside_accuracies(runs: list[Run]) -> None:
    for run in runs:
        counts = run.metrics["per_client_examples"]
        assert sum(counts.values()) == run.metrics["num_examples"] == 24
        assert counts.keys() == run.metrics["per_client"].keys()
    run = runs[0]
    low, high = wilson(run.metrics["accuracy"], 24)
    text = f"{100 * low:.1f}–{100 * high:.1f} %"
    first, summary = overview([run])
    assert f"on 24 test examples (95 % interval {text})" in first.sentences[0]
    rows = dict(summary.tables[0][1].rows)
    assert (rows["95 % interval"], rows["Test examples"]) == (text, "24")
    area = layers(first.figures[0].spec, "area")[0]
    bands = values(first.figures[0].spec, area)
    assert {row["series"] for row in bands} == {"all examples"}
    assert [row["low"] for row in bands][-1] == pytest.approx(low)
    sections: dict[str, Section] = {section.title: section for section in detail(run)}
    every = sections["Rounds"].tables[0][1]
    assert [row[every.header.index("95 % interval")] for row in every.rows][-1] == text
    clients = sections["Clients"].figures[0]
    for name, value, own in (row[:3] for row in clients.table.rows):
        low, high = wilson(run.metrics["per_client"][name], run.metrics["per_client_examples"][name])
        assert value and own == f"{100 * low:.1f}–{100 * high:.1f} %"
    (whiskers,) = [layer for layer in layers(clients.spec, "rule") if "x2" in layer["encoding"]]
    assert len(values(clients.spec, whiskers)) == len(clients.table.rows)


def test_pages_are_dated(runs: list[Run]) -> None:
    for run in runs:
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", str(run.date))
        assert str(run.record.environment["started"]).startswith(str(run.date))
    assert re.search(r"Written on \d{4}-\d\d-\d\d \d\d:\d\d UTC by lora-a2", render(runs))


def test_columns_that_are_the_same_in_every_row_are_said_once() -> None:
    rows = [("one", 1, "x", None, 5), ("two", 1, "y", None, 5)]
    shown = trimmed(table(["Name", "Rounds", "Value", "Empty", "Kept"], rows), keep=["Kept"])
    assert shown.header == ("Name", "Value", "Kept")
    assert shown.rows == (("one", "x", 5), ("two", "y", 5))
    assert shown.note == "The same in every row: Rounds: 1."
    assert trimmed(table(["Name", "Rounds"], rows[:1] and [("one", 1)])).header == ("Name", "Rounds"), (
        "a row alone keeps all"
    )


# In the browser.

AXES = """title => [...document.querySelectorAll('.chart svg')].flatMap((svg) =>
    [...svg.querySelectorAll('.role-axis')]
        .filter((axis) => axis.querySelector('.role-axis-title text')?.textContent === title)
        .map((axis) => [...axis.querySelectorAll('.role-axis-label text')]
            .filter((text) => text.getAttribute('opacity') !== '0' && text.style.opacity !== '0')
            .map((text) => text.textContent)))"""


def test_drawn_axes_have_whole_rounds_once_and_bytes_with_units(opened: Any) -> None:
    of_rounds = opened.evaluate(AXES, "Server round")
    assert len(of_rounds) > 5
    for labels in of_rounds:
        assert labels == sorted(set(labels), key=int)
        assert all(label.isdigit() for label in labels)
    (of_bytes,) = opened.evaluate(AXES, "Uploaded so far (logarithmic)")
    assert of_bytes and all(re.fullmatch(BYTES, label) for label in of_bytes)


def test_drawn_curves_have_the_legend_s_colours_and_a_band(opened: Any) -> None:
    """The first picture of the page: two methods, of which one has two seeds."""
    found = opened.locator("figure").first.evaluate(
        """figure => {
            const style = (selector, key) => [...figure.querySelectorAll(selector)].map((e) => getComputedStyle(e)[key]);
            return {
                names: [...figure.querySelectorAll('.role-legend-label text')].map((text) => text.textContent),
                keys: style('.role-legend-symbol path', 'fill'),
                lines: style('.mark-line.role-mark path', 'stroke'),
                bands: style('.mark-area.role-mark path', 'fill'),
            };
        }"""
    )
    assert set(found["names"]) == {"lora-a2", "full"}
    assert len(set(found["keys"])) == 2
    assert sorted(found["keys"]) == sorted(found["lines"])
    assert found["bands"] == [found["keys"][found["names"].index("lora-a2")]]


def test_drawn_heat_maps_have_their_diagonal_empty(opened: Any) -> None:
    """Rows and columns read alike, and no cell lies on the line from corner to corner."""
    figures = opened.locator("figure", has_text="Updates alike")
    assert figures.count() > 0
    for figure in figures.all():
        found = figure.evaluate(
            """figure => {
                const labels = [...figure.querySelectorAll('.role-axis')].filter((a) => a.querySelector('.role-axis-title'))
                    .map((axis) => [...axis.querySelectorAll('.role-axis-label text')].map((text) => text.textContent));
                const cells = [...figure.querySelectorAll('.mark-rect.role-mark path')].map((cell) => {
                    const box = cell.getBBox();
                    return [Math.round(box.x / box.width), Math.round(box.y / box.height)];
                });
                return {labels, cells};
            }"""
        )
        across, down = found["labels"]
        assert across == down and len(across) == 4
        cells = {tuple(cell) for cell in found["cells"]}
        assert cells == {(i, j) for i in range(4) for j in range(4) if i != j}


@pytest.mark.parametrize("opened", [("light", 390)], indirect=True, ids=str)
def test_the_first_column_stays_where_a_wide_table_scrolls(opened: Any) -> None:
    region = opened.locator("section", has=opened.locator("h2", has_text="Summary")).locator(".scroll").first
    place = "region => [region.querySelector('tbody th'), region.querySelector('tbody td')].map(c => c.getBoundingClientRect().x)"
    name, cell = region.evaluate(place)
    assert region.evaluate("region => { region.scrollLeft = 150; return region.scrollLeft; }") == 150
    assert region.evaluate(place) == [name, cell - 150]
