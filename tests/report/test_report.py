"""The page of `lora-a2 report`: what is on it, and that it draws, reads and can be reached in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lora_a2.report.baselines
from cli_helpers import one_error
from lora_a2.cli import main
from lora_a2.config.run import RunConfig, make_config
from lora_a2.data.written import Turn
from lora_a2.display.progress import human_bytes, percent
from lora_a2.errors import RunError
from lora_a2.federation.observer import Observer
from lora_a2.runs.jobs import launch
from lora_a2.runs.measuring import evaluate_run
from lora_a2.runs.mistakes import Mistakes, mistakes_of
from lora_a2.runs.predict import load_predictor
from lora_a2.system.files import read_sealed, write_sealed
from pages import HOSTILE, Reader
from writers import writing_options

pytest.importorskip("altair", reason="the report is an extra")
vl_convert = pytest.importorskip("vl_convert", reason="the report is an extra")

from lora_a2.report.answers import answer_sections  # noqa: E402
from lora_a2.report.axes import PERCENT, PLAIN  # noqa: E402
from lora_a2.report.baselines import joining  # noqa: E402
from lora_a2.report.batches import batch_sections  # noqa: E402
from lora_a2.report.blocks import Figure, Section, table  # noqa: E402
from lora_a2.report.charts import histogram  # noqa: E402
from lora_a2.report.detail import detail  # noqa: E402
from lora_a2.report.groups import grouped  # noqa: E402
from lora_a2.report.inputs import Run, find_runs  # noqa: E402
from lora_a2.report.mistakes import mistakes_section  # noqa: E402
from lora_a2.report.overview import overview  # noqa: E402
from lora_a2.report.render import render  # noqa: E402


def test_the_page_says_what_the_ledger_says(page: Path, runs: list[Run]) -> None:
    found = Reader(page.read_text())
    headings = {text for level in ("h2", "h3", "h4") for text in found.texts[level]}
    for title in ("Summary", "Over seeds", "Accuracy", "Clients", "Labels", "Ranks", "Similarity of clients"):
        assert title in headings
    cells = found.texts["td"]
    for run in runs:
        assert percent(run.metrics["accuracy"]) in cells
        assert human_bytes(run.uploaded_bytes) in cells
        assert f"lora-a2 run --config {run.record.path}/config.toml" in page.read_text()
    full = next(run for run in runs if run.is_full)
    best = max(run.metrics["accuracy"] for run in runs if not run.is_full)
    assert f"{100 * (best - full.metrics['accuracy']):+.1f} points".replace("-", "−") in cells
    assert full.full_bytes is not None
    assert f"Full fine-tuning would upload: {human_bytes(full.full_bytes)}" in page.read_text(), "of all the same"
    assert full.uploaded_bytes == pytest.approx(full.full_bytes, rel=0.03)  # headers more, the frozen head less


def _drawn(figure: Figure) -> list[dict[str, Any]]:
    """The rows of a picture that has one table of them."""
    (rows,) = figure.spec["datasets"].values()
    return list(rows)


@pytest.mark.parametrize("task", ["classification", "causal-lm"])
def test_alone_or_together(task: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "selecting"
    if task == "causal-lm":
        path = tmp_path / "run"
        options = {**writing_options(tmp_path), "baselines": "local", "output_dir": str(path)}
        launch(make_config({}, options), Observer())
    run = find_runs([path])[0][0]
    section = joining(run)
    assert section is not None
    kinds = read_sealed(path / "baselines.json")["kinds"]
    (figure,) = section.figures
    heads = ["Alone", "Together", *(["After personal tuning", "Centralised"] if task == "classification" else [])]
    assert list(figure.table.header) == ["Client", "Test examples", *heads]
    for name, count, *cells in figure.table.rows:
        own = {"Together": run.metrics["per_client"][name], "Alone": kinds["local"][name][run.task.primary]}
        assert count == kinds["local"][name]["num_examples"] == run.metrics["per_client_examples"][name]
        assert cells[:2] == [run.task.show(own["Alone"]), run.task.show(own["Together"])]
    points = figure.spec["layer"][1]
    assert [(row["name"], row["kind"]) for row in _drawn(figure)[:2]] == [
        (figure.table.rows[0][0], h) for h in heads[:2]
    ]
    assert len(_drawn(figure)) == len(heads) * len(figure.table.rows)
    assert points["encoding"]["color"]["scale"]["domain"] == heads
    assert "Means over" in section.sentences[0] and "better than alone for" in section.sentences[1]
    few = 2
    monkeypatch.setattr(lora_a2.report.baselines, "MAX_CLIENTS", few)
    cut = joining(run)
    assert cut is not None and len(_drawn(cut.figures[0])) == few * len(heads)
    assert f"The first {few} of" in cut.figures[0].description


def test_runs_without_baselines_have_no_such_section(folder: Path, tmp_path: Path) -> None:
    runs = find_runs([folder])[0]
    assert [run.name for run in runs if joining(run) is not None] == ["selecting"]
    copy = tmp_path / "copy"
    shutil.copytree(folder / "selecting", copy)
    values = read_sealed(copy / "baselines.json")
    write_sealed(copy / "baselines.json", {**values, "server_round": values["server_round"] - 1})
    section = joining(find_runs([copy])[0][0])  # rounds were added since
    assert section is not None and not section.figures
    (said,) = section.sentences
    assert said.startswith("Not computed yet: alone, centralised, after personal tuning.") and f"resume {copy}" in said
    (copy / "baselines.json").write_text("{}")
    with pytest.raises(RunError, match="damaged"):
        joining(find_runs([copy])[0][0])


def test_every_chart_is_valid_and_has_its_numbers_beside_it(page: Path) -> None:
    found = Reader(page.read_text())
    assert len(found.specs) > 20
    assert found.tags.count("figure") == len(found.specs)
    assert len(re.findall(r"<summary>Table: ", page.read_text())) == len(found.specs)
    kinds = {str([layer["mark"] for layer in spec.get("layer", [spec])]): spec for spec in found.specs}
    assert len(kinds) > 5
    for spec in kinds.values():
        assert "<path" in vl_convert.vegalite_to_svg({**spec, "width": 300})


def test_nothing_of_a_user_becomes_markup(page: Path) -> None:
    text = page.read_text()
    assert "&lt;b&gt;ann&lt;/b&gt;" in text
    assert "<b>ann" not in text
    assert HOSTILE not in text
    assert "img" not in Reader(text).tags


def test_the_page_needs_nothing_from_elsewhere(page: Path) -> None:
    text = page.read_text()
    assert len(text) < 2_000_000
    found = Reader(text)
    assert {"link", "script", "style"} <= set(found.tags)
    assert found.addresses == ["data:,"]
    assert not re.search(r"@import|url\(", "".join(found.texts["style"]))


def test_what_a_run_did_not_record_is_left_out(folder: Path, tmp_path: Path) -> None:
    path = folder / "selecting" / "config.toml"
    given = {**tomllib.loads(path.read_text()), "record-analysis": False, "output-dir": str(tmp_path / "run")}
    launch(make_config(given, {}), Observer())
    text = render(*find_runs([tmp_path / "run"]))
    for sentence in (
        "did not record which labels its clients hold",
        "did not record its clients&#39; updates",
        "did not record what averaging lost",
    ):
        assert sentence in text
    assert len(Reader(text).specs) > 3


def test_an_unfinished_run_is_shown_as_far_as_it_came(folder: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(folder / "selecting", tmp_path / "run"))
    state = read_sealed(run / "checkpoint" / "state.json")
    write_sealed(run / "checkpoint" / "state.json", {**state, "lines": {"rounds": 2, "analysis": 2}})
    text = render(*find_runs([run]))
    assert "2 of 3" in text
    assert "Not finished: run." in text


def test_the_command_writes_the_page(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "out.html"
    assert main(["report", str(folder / "full"), str(folder / "again"), "--output", str(target)]) == 0
    assert str(target) in capsys.readouterr().out
    assert "<h1>2 runs</h1>" in target.read_text()


def test_the_command_needs_no_torch(folder: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from lora_a2.cli import main; "
        f"assert main(['report', {str(folder / 'again')!r}, '--output', {str(tmp_path / 'out.html')!r}]) == 0; "
        "assert not {'torch', 'transformers', 'peft', 'datasets'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_no_run_is_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main(["report", str(empty)]) == 2
    assert "holds no run" in one_error(capsys)
    shutil.copytree(folder / "again", tmp_path / "runs" / "damaged")
    (tmp_path / "runs" / "damaged" / "rounds.jsonl").write_text("{")
    assert main(["report", str(tmp_path / "runs")]) == 2
    assert "damaged" in one_error(capsys)
    shutil.copytree(folder / "again", tmp_path / "new" / "begun")
    shutil.rmtree(tmp_path / "new" / "begun" / "checkpoint")
    assert main(["report", str(tmp_path / "new")]) == 2
    assert "no finished round" in one_error(capsys)
    monkeypatch.setattr("lora_a2.commands.report.find_spec", lambda name: None)
    assert main(["report", str(folder)]) == 2
    assert "pip install 'lora-a2[report]'" in one_error(capsys)
    assert not Path("report.html").exists()


def test_a_sweep_s_tuning_is_left_out_and_empty_runs_are_named(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "again", tmp_path / "sweep" / "runs" / "one")
    shutil.copytree(folder / "again", tmp_path / "sweep" / "tuning" / "two")
    shutil.copytree(folder / "again", tmp_path / "sweep" / "runs" / "three")
    shutil.rmtree(tmp_path / "sweep" / "runs" / "three" / "checkpoint")
    found, not_begun = find_runs([tmp_path / "sweep"])
    assert [run.name for run in found] == ["one"]
    assert [path.name for path in not_begun] == ["three"]
    assert "left out: three." in render(found, not_begun)


def test_a_sweep_s_rates_and_failures_are_shown(folder: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    shutil.copytree(folder / "again", sweep / "runs" / "one")
    tried = [(1e-3, 0.5), (5e-3, 0.625), (1e-2, None)]
    candidates = [{"learning_rate": rate, "mean_accuracy": mean, "accuracies": [mean]} for rate, mean in tried]
    group = {"arm": "ours", "alpha": "0.1", "runs": 3, "candidates": candidates, "chosen": 5e-3, "at_edge": False}
    (sweep / "tuning.json").write_text(json.dumps([group]))
    failures = sweep / "runs" / "failures"
    failures.mkdir()
    (failures / "two.json").write_text(json.dumps({"error": "RunError", "message": HOSTILE, "traceback": "t"}))
    assert "on 24 test examples" not in batch_sections([sweep])[0].sentences[0]
    shutil.copytree(folder / "again", sweep / "tuning" / "ours-5e-3")
    rates, failed = batch_sections([sweep])
    assert rates.sentences[0].startswith(
        "Mean accuracy of the tuning runs at each learning rate, each on 24 test examples."
    )
    assert rates.tables[0][1].header == ("Arm", "alpha", "0.001", "0.005", "0.01", "Chosen", "At the edge", "Runs")
    assert rates.tables[0][1].rows == (("ours", "0.1", "50.0 %", "62.5 %", None, "0.005", "", 3),)
    assert failed.tables[0][1].rows == (("runs/two", "RunError", HOSTILE),)
    assert main(["report", str(sweep), "--output", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "Learning rates" in page
    assert "Failed runs" in page
    assert HOSTILE not in page


def test_damaged_tuning_is_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(folder / "again", tmp_path / "sweep" / "runs" / "one")
    (tmp_path / "sweep" / "tuning.json").write_text('[{"arm": 1}]')
    assert main(["report", str(tmp_path / "sweep"), "--output", str(tmp_path / "page.html")]) == 2
    assert "tuning.json is damaged" in one_error(capsys)
    assert not (tmp_path / "page.html").exists()


def test_models_that_write_are_compared_by_perplexity(written: Path) -> None:
    runs = find_runs([written])[0]
    last = {run.name: run.record.rounds[-1].metrics for run in runs}
    order = sorted(last, key=lambda name: last[name]["perplexity"])
    first, seeds, summary = overview(runs)
    means = {name: last[name]["perplexity"] for name in ("own", "full")}
    means["lora-a2"] = float(np.mean([last[name]["perplexity"] for name in ("one", "two")]))
    best = min(means, key=lambda name: means[name])
    assert first.sentences[0].startswith(f"Of 3 settings, {best} is the best")
    assert f" {means[best]:.2f} perplexity " in first.sentences[0]
    assert first.title == "Perplexity"
    (_, table), *_ = summary.tables
    rows = {str(row[0]): dict(zip(table.header, row, strict=True)) for row in table.rows}
    assert list(rows) == order, "lowest first"
    assert "Accuracy" not in table.header
    for name, row in rows.items():
        assert row["Perplexity"] == f"{last[name]['perplexity']:.2f}"
        assert row["Loss"] == f"{last[name]['loss']:.4g}"
        assert row["Token accuracy"] == percent(last[name]["token_accuracy"])
        assert row["Worst tenth"] == f"{last[name]['client_worst_tenth']:.2f}"
        beside = last[name]["perplexity"] - last["full"]["perplexity"]
        assert row["Beside full fine-tuning"] == f"{beside:+.2f}".replace("-", "−")
    assert rows["own"]["Personal models"] == f"{last['own']['personal']['perplexity']:.2f}"
    assert rows["one"]["Personal models"] is None
    (_, over), *_ = seeds.tables
    pair = [last[name]["perplexity"] for name in ("one", "two")]
    found = dict(zip(over.header, over.rows[0], strict=True))
    assert found["Perplexity"] == f"{np.mean(pair):.2f} ± {np.std(pair, ddof=1):.2f}"
    (by_round, by_bytes) = first.figures
    assert [row[0] for row in by_round.table.rows] == [
        name for name in sorted(means, key=lambda n: means[n]) for _ in range(3)
    ]
    curves = [group.points for group in sorted(grouped(runs), key=lambda group: group.worse)]
    costs = [(point.uploaded, point.score) for points in curves for point in points]
    front = [not any(c <= a and v <= b and (c, v) != (a, b) for c, v in costs) for a, b in costs]
    assert [row[-1] for row in by_bytes.table.rows] == ["yes" if on else "" for on in front]
    stairs = by_bytes.spec["layer"][-1]["data"]["values"]
    assert [step["y"] for step in stairs] == sorted((step["y"] for step in stairs), reverse=True)


def test_the_page_of_a_model_that_writes(written: Path) -> None:
    (run,) = find_runs([written / "one"])[0]
    sections = {section.title: section for section in detail(run)}
    assert "Labels" not in sections, "its examples have none"
    per_client = run.metrics["per_client"]
    figure = sections["Clients"].figures[0]
    worst_first = sorted(per_client, key=lambda name: -per_client[name])
    assert [row[0] for row in figure.table.rows] == worst_first
    assert [row[1] for row in figure.table.rows] == [f"{per_client[name]:.2f}" for name in worst_first]
    low, high = min(per_client.values()), max(per_client.values())
    assert sections["Clients"].sentences[0].endswith(f"from {low:.2f} to {high:.2f}.")
    bars = next(layer for layer in figure.spec["layer"] if layer["mark"]["type"] == "bar")
    assert "domain" not in bars["encoding"]["x"]["scale"], "a perplexity is no share of 1"
    text = render([run])
    found = Reader(text)
    for title in ("Perplexity per round, and over clients", "Perplexity per client", "Perplexity per byte"):
        assert title in text
    assert "ccuracy per" not in text
    assert "%" not in "".join(
        json.dumps(spec["layer"] if "layer" in spec else spec["encoding"]) for spec in found.specs
    )
    for spec in found.specs:
        assert "<path" in vl_convert.vegalite_to_svg({**spec, "width": 300})


def test_many_clients_perplexities_are_counted_in_steps() -> None:
    rows = [{"value": float(value)} for value in (12, 15, 15.5, 200)]
    assert "<path" in vl_convert.vegalite_to_svg({**histogram(rows, "Perplexity", x_format=PLAIN), "width": 300})
    assert "extent" not in histogram(rows, "Perplexity", x_format=PLAIN)["encoding"]["x"]["bin"]
    assert histogram(rows, "Accuracy", x_format=PERCENT)["encoding"]["x"]["bin"]["extent"] == [0, 1]


def test_runs_of_two_tasks_are_one_line(
    folder: Path, written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "page.html"
    assert main(["report", str(folder / "full"), str(written / "one"), "--output", str(target)]) == 2
    assert "These runs are of several tasks (causal-lm, classification)" in one_error(capsys)
    assert not target.exists()
    assert main(["report", str(written), "--output", str(target)]) == 0


EVERYWHERE = pytest.mark.parametrize(
    "opened", [("light", 1200), ("dark", 1200), ("light", 390), ("dark", 390)], indirect=True, ids=str
)


@EVERYWHERE
def test_every_chart_is_drawn_and_fits(opened: Any) -> None:
    states = opened.evaluate("[...document.querySelectorAll('.chart')].map(c => c.dataset.drawn)")
    assert len(states) > 20
    assert set(states) == {"done"}
    marks = opened.evaluate(
        "[...document.querySelectorAll('.chart')].map(c => c.querySelectorAll('svg [role=graphics-symbol]').length)"
    )
    assert min(marks) > 0
    assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth")
    widths = opened.evaluate("[...document.querySelectorAll('.chart')].map(c => c.scrollWidth - c.clientWidth)")
    assert max(widths) <= 1
    assert "broken" not in opened.title()


def _luminance(rgb: list[float]) -> float:
    """Relative luminance of WCAG 2."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(a: list[float], b: list[float]) -> float:
    light, dark = sorted((_luminance(a), _luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@EVERYWHERE
def test_text_and_lines_stand_out(opened: Any) -> None:
    """WCAG 2.1: 4.5 : 1 for text, 3 : 1 for what pictures are made of."""
    colours = opened.evaluate(
        """() => {
            const probe = document.body.appendChild(document.createElement("i"));
            const names = ["back", "panel", "text", "muted", "accent", ...Array.from({length: 8}, (_, i) => `c${i + 1}`)];
            const found = names.map((name) => {
                probe.style.color = `var(--${name})`;
                return [name, getComputedStyle(probe).color.match(/[0-9.]+/g).map(Number)];
            });
            probe.remove();
            return Object.fromEntries(found);
        }"""
    )
    for ground in ("back", "panel"):
        for name in ("text", "muted", "accent"):
            assert _contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
        for name in (f"c{i}" for i in range(1, 9)):
            assert _contrast(colours[name], colours[ground]) >= 3, (name, ground)
    drawn = opened.evaluate("getComputedStyle(document.querySelector('.chart svg .role-axis-label text')).fill")
    assert [float(v) for v in re.findall(r"[0-9.]+", drawn)] == colours["text"]


def test_everything_is_reached_by_keyboard(opened: Any) -> None:
    wanted = opened.evaluate(
        """() => {
            const all = [...document.querySelectorAll("summary, .chart, .chart select, .chart input, pre")];
            window.waiting = new Set(all.filter((element) => element.checkVisibility()));
            document.addEventListener("focusin", (event) => window.waiting.delete(event.target));
            return window.waiting.size;
        }"""
    )
    assert wanted > 60
    for _ in range(2 * wanted):  # there are other stops in between
        opened.keyboard.press("Tab")
    assert opened.evaluate("[...window.waiting].map((element) => element.outerHTML)") == []


def test_arrow_keys_read_out_the_points_of_a_chart(opened: Any) -> None:
    chart = opened.locator(".chart").first
    chart.focus()
    readout = opened.locator("figure").first.locator(".readout")
    opened.keyboard.press("ArrowRight")
    first = readout.text_content()
    assert "Accuracy" in first and "Server round" in first
    opened.keyboard.press("ArrowRight")
    assert readout.text_content() != first
    opened.keyboard.press("ArrowLeft")
    assert readout.text_content() == first
    opened.keyboard.press("Tab")
    assert readout.text_content() == ""


def test_the_round_of_the_ranks_is_chosen_by_keyboard(opened: Any) -> None:
    figure = opened.locator("figure", has=opened.locator("input[type=range]")).first
    numbers = "figure => [...figure.querySelectorAll('svg .mark-text.role-mark text')].map(t => t.textContent)"
    mean = figure.evaluate(numbers)
    figure.locator("input[type=range]").focus()
    opened.keyboard.press("ArrowRight")
    opened.wait_for_timeout(100)
    assert len(mean) == len(figure.evaluate(numbers)) == 12
    assert figure.evaluate(numbers) != mean


def test_a_table_opens_by_keyboard(opened: Any) -> None:
    summary = opened.locator("details.numbers > summary").first
    summary.focus()
    opened.keyboard.press("Enter")
    assert opened.locator("details.numbers").first.locator("tbody tr").first.is_visible()


def test_answers_stand_side_by_side(tmp_path: Path) -> None:
    """As the model wrote them before and writes them now, with what the data say; and only where they are asked for."""
    from lora_a2.runs.writer import load_writer
    from lora_a2.tasks.causal_lm.generation import generate_texts
    from lora_a2.tasks.causal_lm.sampling_options import SamplingOptions

    options = writing_options(tmp_path) | {"output_dir": str(tmp_path / "run")}
    launch(RunConfig(**options), Observer())
    page = tmp_path / "page.html"
    assert main(["report", str(tmp_path / "run"), "--output", str(page)]) == 0
    assert "Answers" not in page.read_text()
    assert main(["report", str(tmp_path / "run"), "--output", str(page), "--examples", "3"]) == 0
    text = page.read_text()
    assert text.count("<h2>Answers</h2>") == 1
    (found,) = answer_sections(find_runs([tmp_path / "run"])[0], 3)
    ((_, shown),) = found.tables
    rows = {row["prompt"]: row["completion"] for row in map(json.loads, Path(options["data"]).read_text().splitlines())}
    writer = load_writer(tmp_path / "run")
    assert len(shown.rows) == 3
    for prompt, _, after, reference in shown.rows:
        asked = next(own for own in rows if own.strip() in str(prompt))
        assert reference == rows[asked]
        ids = writer.encode_prompt([Turn("user", asked)])
        assert [after] == generate_texts(writer.model, writer.tokenizer, [ids], SamplingOptions(max_new_tokens=128))


def test_a_classifier_s_mistakes_are_shown_where_they_are_asked_for(folder: Path, tmp_path: Path) -> None:
    """What is wrong by `evaluate_run` is what the section counts; the surest mistakes come first, with the texts of the data."""
    path = folder / "again"
    found = mistakes_of(path, 1000)
    right = evaluate_run(path).metrics["accuracy"]
    assert found.num_examples == 24
    assert found.num_wrong == len(found.worst) == round((1 - right) * 24) > 0
    texts = {
        (row["text"], row["user"]): row["label"]
        for row in map(json.loads, (folder.parent / "test.jsonl").read_text().splitlines())
    }
    for one in found.worst:
        assert texts[one.text, one.client] == one.label != one.predicted
        assert 0.5 <= one.probability <= 1, "the likelier one of two classes"
    probabilities = [one.probability for one in found.worst]
    assert probabilities == sorted(probabilities, reverse=True)
    predictor = load_predictor(path)
    first = found.worst[0]
    chances = dict(zip(predictor.label_names, predictor.predict([first.text])[0].tolist(), strict=True))
    assert chances[first.predicted] == pytest.approx(first.probability, abs=1e-4)
    (section,) = answer_sections(find_runs([path])[0], 2)
    assert section.sentences[0] == f"The global model is wrong on {found.num_wrong} of 24 test examples."
    assert [row[0] for row in section.tables[0][1].rows] == [one.text for one in found.worst[:2]]
    assert main(["report", str(path), "--output", str(tmp_path / "page.html")]) == 0
    assert first.text not in (tmp_path / "page.html").read_text()
    assert main(["report", str(path), "--examples", "2", "--output", str(tmp_path / "page.html")]) == 0
    assert first.text in (tmp_path / "page.html").read_text()


def test_the_worst_classes_stand_first_in_both_directions() -> None:
    """Twelve classes of ten examples: class k has k right, the others are taken for the next class."""
    counts = np.zeros((12, 12), np.int64)
    for k in range(12):
        counts[k, k] = min(k, 10)
        counts[k, (k + 1) % 12] += 10 - min(k, 10)
    names = tuple(f"class {k}" for k in range(12))
    figure = mistakes_section("Mistakes", Mistakes(names, counts, ())).figures[0]
    encoding = figure.spec["layer"][0]["encoding"]
    down = encoding["y"]["scale"]["domain"]
    assert encoding["x"]["scale"]["domain"] == [*down, "any other"]
    f1 = [2 * counts[k, k] / (counts[k].sum() + counts[:, k].sum()) for k in range(12)]
    assert down == [names[k] for k in np.argsort(f1, kind="stable")[:10]]
    (cells,) = figure.spec["datasets"].values()
    for name in down:
        assert sum(cell["value"] for cell in cells if cell["y"] == name) == pytest.approx(1)
    assert encoding["color"]["scale"]["domain"] == [0, 1]
    assert figure.table.rows[0] == ("class 0", 10, 0, "0.0 %", "class 1 10")
    assert "<path" in vl_convert.vegalite_to_svg({**figure.spec, "width": 300})


def test_a_model_without_mistakes_has_none() -> None:
    section = mistakes_section("Mistakes", Mistakes(("a", "b"), np.diag([3, 4]), ()))
    assert section.sentences == ("The global model is wrong on 0 of 7 test examples.",)
    assert not section.figures and not section.tables


def test_a_model_that_writes_has_no_labels_to_confuse(written: Path) -> None:
    with pytest.raises(RunError, match="a model that writes, which gives no labels"):
        mistakes_of(written / "one", 1)


def test_only_cells_that_are_numbers_are_aligned_as_such(runs: list[Run]) -> None:
    shown = table(
        ["Text", "Value"], [("a", cell) for cell in ("3 cups of tea", "69.0–73.4 %", "2 of 3", "1.6 MB", "+1.5 points")]
    )
    text = render(runs[:1], more=[Section("More", tables=(("", shown),))])
    aligned = re.findall(r'<td class="number">([^<]*)</td>', text)
    assert {"69.0–73.4 %", "2 of 3", "1.6 MB", "+1.5 points"} <= set(aligned)
    assert "<td>3 cups of tea</td>" in text
