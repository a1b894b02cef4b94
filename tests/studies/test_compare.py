"""Runs on disk with a tiny model: every method resumes byte for byte, comparisons resume, and what is saved predicts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_a2.cli import main
from lora_a2.config.run import RunConfig
from lora_a2.federation.observer import Observer
from lora_a2.federation.probes import PROBES, ProbeName
from lora_a2.methods import METHODS
from lora_a2.model.pretrained import load_model
from lora_a2.runs.directory import RunDirectory
from lora_a2.runs.jobs import launch, resume
from lora_a2.runs.predict import load_predictor
from lora_a2.runs.summary import RunSummary
from run_files import run_options
from tiny import LABELS, Stopping
from writers import writing_options

ALL = pytest.mark.parametrize("name", METHODS)


def contents(folder: Path) -> dict[str, bytes]:
    """What a run leaves that must not depend on interruptions."""
    kept = [p for name in ("adapter", "model", "checkpoint", "personal") for p in sorted((folder / name).rglob("*"))]
    return {str(p.relative_to(folder)): p.read_bytes() for p in kept if p.is_file()}


def config_of(name: str, options: dict[str, Any], folder: Path) -> RunConfig:
    budget = (1, 2, 2, 1) if METHODS[name].mixed_ranks else 2
    return RunConfig(**options, method=name, rank_budget=budget, output_dir=str(folder))


Finished = Callable[[str], tuple[Path, RunSummary]]


@pytest.fixture(scope="module")
def finished(model_folder: Path, data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Method → the folder and the summary of a run that nobody interrupted; tests read it only."""
    kept: dict[str, tuple[Path, RunSummary]] = {}

    def run(name: str) -> tuple[Path, RunSummary]:
        if name not in kept:
            folder = tmp_path_factory.mktemp("finished") / "run"
            kept[name] = folder, launch(config_of(name, run_options(model_folder, data_folder), folder), Observer())
        return kept[name]

    return run


@ALL
def test_resumed_is_the_same_byte_for_byte(
    name: str, options: dict[str, Any], finished: Finished, tmp_path: Path
) -> None:
    whole, broken = finished(name)[0], tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt):
        launch(config_of(name, options, broken), Stopping(after=2))
    resume(broken, Observer())
    expected, got = contents(whole), contents(broken)
    assert len(expected) > 4
    assert expected == got
    sizes = []
    for folder in (whole, broken):
        records = map(json.loads, (folder / "rounds.jsonl").read_text().splitlines())
        sizes.append([(r["uploaded_bytes"], r["downloaded_bytes"]) for r in records])
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("probe", PROBES)
def test_resumed_with_each_probe_is_the_same_byte_for_byte(
    probe: ProbeName, options: dict[str, Any], tmp_path: Path
) -> None:
    options = {**options, "rank_budget": 1, "probe": probe, "clients_per_pass": 2}
    whole, broken = (RunConfig(**options, output_dir=str(tmp_path / x)) for x in ("whole", "broken"))
    launch(whole, Observer())
    with pytest.raises(KeyboardInterrupt):
        launch(broken, Stopping(after=1))
    assert f'probe = "{probe}"' in (tmp_path / "broken" / "config.toml").read_text()
    resume(tmp_path / "broken", Observer())
    assert contents(tmp_path / "whole") == contents(tmp_path / "broken")


@ALL
def test_what_is_saved_predicts_as_the_run_did(name: str, options: dict[str, Any], finished: Finished) -> None:
    run, summary = finished(name)
    assert (summary.personal is not None) == bool(METHODS[name].private)
    model = load_model(options["model"], labels=LABELS, dtype="float32", seed=0)
    layout = model.layout
    state = RunDirectory(run).load_state(layout)
    assert state is not None
    model.network.set_base(state.base)
    texts = ["w1 w2 w3", "w0 w0"]
    expected = model.network.predict(state.adapter, model.tokenize(texts))
    np.testing.assert_allclose(load_predictor(run).logits(texts), expected, atol=1e-5)
    moved = np.abs(
        expected
        - load_model(options["model"], labels=LABELS, dtype="float32").network.predict(None, model.tokenize(texts))
    )
    assert (moved.max() > 1e-3) != bool(METHODS[name].private)
    if METHODS[name].private:
        ids = sorted(int(p.name) for p in (run / "personal").iterdir())
        own = [load_predictor(run / "personal" / str(k)).logits(texts) for k in ids]
        assert np.abs(own[0] - own[1]).max() > 1e-3


def flags(options: dict[str, Any]) -> list[str]:
    return [part for key, value in options.items() for part in (f"--{key.replace('_', '-')}", str(value))]


def test_compare_resumes_and_prints_one_table(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "both"
    monkeypatch.setattr("lora_a2.display.live.choose_display", lambda quiet: _Entered(after=2))
    argv = ["compare", "--methods", "fl-lora, fedsa-lora", "--output-dir", str(folder), *flags(options)]
    assert main([*argv, "--quiet"]) == 130
    assert f"lora-a2 compare --resume {folder}" in capsys.readouterr().err
    monkeypatch.undo()
    moved = folder.rename(tmp_path / "moved")
    assert main(["resume", str(moved), "--quiet"]) == 0
    printed = capsys.readouterr().out
    for part in ("Personal", "fl-lora", "fedsa-lora", "Uploaded", "Downloaded", "Time"):
        assert part in printed
    assert main(["compare", "--resume", str(moved), "--quiet", "--json"]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [run["name"] for run in runs] == ["fl-lora", "fedsa-lora"]
    assert runs[0]["uploaded_bytes"] > runs[1]["uploaded_bytes"]


class _Entered(Stopping):
    output_dir = None

    def __enter__(self) -> _Entered:
        return self

    def __exit__(self, *_: object) -> None: ...


def test_compare_shows_the_best_of_the_learning_rates(
    options: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {**options, "num_server_rounds": 1}
    argv = ["compare", "--methods", "ffa-lora", "--learning-rates", "1e-9,0.05", "--output-dir", str(tmp_path / "c")]
    assert main([*argv, *flags(given), "--quiet"]) == 0
    assert capsys.readouterr().out.count("ffa-lora") == 1
    summaries = [
        json.loads((tmp_path / "c" / f"ffa-lora-lr{x}" / "summary.json").read_text()) for x in ("1e-09", "0.05")
    ]
    assert summaries[0]["uploaded_bytes"] == summaries[1]["uploaded_bytes"]


@pytest.mark.parametrize("validation", [False, True])
def test_compare_says_by_what_the_best_rate_was_chosen(
    validation: bool, options: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {key: value for key, value in options.items() if key not in ("test_data", "learning_rate")}
    given |= {"num_server_rounds": 1, **({"validation_fraction": 0.3} if validation else {})}
    folder = ["--output-dir", str(tmp_path / "c")]
    argv = ["compare", "--methods", "ffa-lora", "--learning-rates", "1e-9,0.05", *folder, *flags(given)]
    assert main([*argv, "--quiet"]) == 0
    printed = capsys.readouterr().out
    header = next(line for line in printed.splitlines() if "Rate" in line)
    assert ("Validation accuracy" in header) == validation
    by = "validation" if validation else "test"
    assert f"at the best of 2 learning rates by {by} accuracy" in printed
    assert ("which flatters it" in printed) != validation
    assert main(["compare", "--resume", str(tmp_path / "c"), "--quiet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["evaluated_on"] == by


def test_compare_without_several_rates_chooses_nothing(
    options: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {**options, "num_server_rounds": 1}
    argv = ["compare", "--methods", "ffa-lora", "--output-dir", str(tmp_path / "c"), *flags(given)]
    assert main([*argv, "--quiet"]) == 0
    assert "best of" not in capsys.readouterr().out


def test_compare_shows_the_lowest_perplexity_of_models_that_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {key: value for key, value in writing_options(tmp_path).items() if key != "learning_rate"}
    argv = ["compare", "--methods", "ffa-lora", "--learning-rates", "1e-9,0.05", "--output-dir", str(tmp_path / "c")]
    assert main([*argv, *flags(given), "--at-rounds", "1", "--quiet"]) == 0
    heads, row = (line.split() for line in capsys.readouterr().out.splitlines() if "Rate" in line or "ffa" in line)
    ends = {}
    for rate in ("1e-09", "0.05"):
        ledger = (tmp_path / "c" / f"ffa-lora-lr{rate}" / "rounds.jsonl").read_text().splitlines()
        ends[rate] = [json.loads(line)["metrics"]["perplexity"] for line in ledger]
    assert ends["0.05"][1] < ends["1e-09"][1]
    assert heads[:5] == ["Method", "Rate", "Round", "1", "Perplexity"]
    assert row[:4] == ["ffa-lora", "0.05", f"{ends['0.05'][0]:.2f}", f"{ends['0.05'][1]:.2f}"]


def test_compare_runs_multiples_of_each_method_s_rate_and_shows_rounds(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`full` has another default than adapters have; what was planned is what resuming runs."""
    given = {k: v for k, v in options.items() if k != "learning_rate"} | {"num_server_rounds": 2}
    folder, rounds = tmp_path / "c", ["--at-rounds", "1,2"]
    argv = ["compare", "--methods", "ffa-lora,full", "--learning-rate-multiples", "0.5,2", "--output-dir", str(folder)]
    monkeypatch.setattr("lora_a2.display.live.choose_display", lambda quiet: _Entered(after=1))
    assert main([*argv, *flags(given), *rounds]) == 130
    monkeypatch.undo()
    capsys.readouterr()
    assert main(["compare", "--resume", str(folder), "--quiet", "--json", *rounds]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    rates = {run["name"]: run["learning_rate"] for run in runs}
    assert list(rates) == ["ffa-lora-x0.5", "ffa-lora-x2", "full-x0.5", "full-x2"]
    usual = 5e-4
    assert rates["ffa-lora-x2"] == pytest.approx(2 * usual)
    assert rates["full-x0.5"] == pytest.approx(0.5 * usual * METHODS["full"].learning_rate_scale)
    for run in runs:
        ledger = map(json.loads, (folder / run["name"] / "rounds.jsonl").read_text().splitlines())
        expected = {str(r["server_round"]): r["metrics"]["accuracy"] for r in ledger}
        assert run["at_rounds"] == expected
        assert len(expected) == 2
        assert run["accuracy"] == expected["2"]
    assert main(["compare", "--resume", str(folder), "--quiet", "--at-rounds", "1"]) == 0
    printed = capsys.readouterr().out
    assert "Round 1" in printed
    assert "Round 2" not in printed


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        (["--methods", "fl-lora,flora", "--rank-budget", "uniform"], "fl-lora needs the same for every client"),
        (["--methods", "fl-lora,flrora"], "Did you mean 'flora'?"),
        (["--methods", "lora-a2,fl-lora", "--criterion", "magnitude"], "criterion: fl-lora has no such switch"),
        (["--methods", "fl-lora", "--learning-rates", "a"], "is not a list of numbers"),
        (["--methods", "fl-lora", "--learning-rate-multiples", "x"], "is not a list of numbers such as 0.2,0.5,1"),
        (["--methods", "fl-lora", "--learning-rate-multiples", "-1"], "learning-rate: -0.005 should be greater than 0"),
        (["--methods", "fl-lora", "--learning-rates", "1", "--learning-rate-multiples", "1"], "not both"),
        (["--methods", "fl-lora", "--at-rounds", "1.5"], "is not a list of numbers such as 4,8,12"),
        (["--methods", "fl-lora", "--at-rounds", "3", "--eval-every", "2"], "at-rounds: round 3 is not evaluated"),
        (["--methods", "fl-lora", "--at-rounds", "11"], "multiples of 1 up to 10"),
        ([], "Name the methods"),
    ],
)
def test_compare_refuses_before_anything_runs(
    extra: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "--output-dir", str(tmp_path / "c"), *extra]) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "c").exists()
