"""Sweeps: what an experiment file stands for, tuning, failures, resuming, several processes, and the tables."""

from __future__ import annotations

import itertools
import json
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lora_a2.runs.jobs
from cli_helpers import one_error
from federation import save_data, save_model
from lora_a2.cli import main
from lora_a2.config.run import RunConfig
from lora_a2.errors import ConfigError, ReplyError
from lora_a2.studies.execution import shares
from lora_a2.studies.experiment import parse_experiment, points, varied
from lora_a2.studies.results import COSTS, cells, long_table, markdown, measures, on_front, plus_minus, wide_table
from lora_a2.system.files import write_all
from lora_a2.tasks import causal_lm, classification
from writers import writing_options

CLIENTS = ("client_mean", "client_worst_tenth")
LABELLING, WRITING = classification.TASK, causal_lm.TASK
EXPERIMENTS = Path(__file__).parents[2] / "experiments"


# --- the file --------------------------------------------------------------------------------------------------------

TEXT = """
title = "A grid"
[run]
r = 4
num-clients = 2
[grid]
alpha = [0.5, 0.1]
seed = [0, 1]
[arms.ffa]
method = "ffa-lora"
[arms.ours]
method = "lora-a2"
[arms.ours.grid]
rank_budget = [1, 2]
[profiles.small]
only = ["ours"]
[profiles.small.run]
num-server-rounds = 3
[profiles.small.grid]
seed = [7]
"""


def test_a_grid_is_every_combination() -> None:
    found = points(parse_experiment(TEXT, "published"), {})
    assert len(found) == 2 * 2 + 2 * 2 * 2
    assert found[0].name == "ffa-alpha0.5-seed0"
    assert found[-1].name == "ours-alpha0.1-seed1-rank2"
    configs = [point.config({}) for point in found]
    expected = [("ffa-lora", 4, a, s) for a, s in itertools.product([0.5, 0.1], [0, 1])]
    expected += [("lora-a2", b, a, s) for a, s, b in itertools.product([0.5, 0.1], [0, 1], [1, 2])]
    assert [(c.method, c.rank_budget, c.alpha, c.seed) for c in configs] == expected
    assert varied(found) == ["method", "alpha", "seed", "rank-budget"]


def test_a_profile_wins_over_the_file_and_fixed_options_over_both() -> None:
    found = points(parse_experiment(TEXT, "small"), {"alpha": "0.3"})
    assert [point.name for point in found] == ["ours-seed7-rank1", "ours-seed7-rank2"]
    config = found[0].config({})
    assert (config.num_server_rounds, config.r, config.alpha) == (3, 4, 0.3)


@given(
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    arms=st.integers(1, 3),
)
def test_the_number_of_runs_is_the_product(sizes: list[int], arms: int) -> None:
    keys = ("seed", "batch-size", "num-server-rounds")
    grid = "\n".join(f"{key} = {list(range(1, n + 1))}" for key, n in zip(keys, sizes, strict=False))
    text = f"[grid]\n{grid}\n" + "\n".join(f"[arms.a{k}]" for k in range(arms))
    found = points(parse_experiment(text, "published"), {})
    assert len(found) == len({point.name for point in found}) == arms * int(np.prod(sizes))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[run", "is not valid TOML"),
        ("[run]", r"no \[arms.NAME\]"),
        ("[runs]\n[arms.a]", "there is no section 'runs'"),
        ("[run]\nrank = 3\n[arms.a]", r"there is no option in \[run\] 'rank'"),
        ("[grid]\nseed = 3\n[arms.a]", "seed is 3: expected a list"),
        ("[grid]\nseed = []\n[arms.a]", "expected a list"),
        ("only = ['b']\n[arms.a]", "there is no arm 'b'"),
        ("[arms.a]\n[tune]\nper = []", "learning-rates or learning-rate-multiples"),
        ("[arms.a]\n[tune]\nrates = [1]", "there is no option of"),
        ("arms = 3", "is not laid out as an experiment"),
        ("[arms.a]\n[published]\ncolumns = ['x']\nrow = [1, 2]", "2 figures for 1 columns"),
    ],
)
def test_a_wrong_file_is_one_clear_line(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_experiment(text, "published")


def test_an_unknown_profile_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match="no profile 'tiny': choose one of published, small"):
        parse_experiment(TEXT, "tiny")


def test_names_that_collide_are_refused() -> None:
    with pytest.raises(ConfigError, match="two runs would have the name 'a-datax'"):
        points(parse_experiment("[grid]\ndata = ['one/x', 'two/x']\n[arms.a]", "published"), {})


# --- the tables ------------------------------------------------------------------------------------------------------


def runs_table(accuracies: dict[tuple[str, float], list[float]]) -> pd.DataFrame:
    """A row a run; NaN stands for a run that failed."""
    rows = [
        {"arm": arm, "alpha": alpha, "seed": seed, "status": "done" if value == value else "failed"}
        | dict.fromkeys((*measures(LABELLING), *COSTS), value)
        | {"personal_accuracy": np.nan}
        for (arm, alpha), values in accuracies.items()
        for seed, value in enumerate(values)
    ]
    return pd.DataFrame(rows)


@given(values=st.lists(st.one_of(st.floats(0, 1), st.just(float("nan"))), min_size=1, max_size=5))
@settings(deadline=None, max_examples=30)
def test_a_cell_is_the_mean_of_its_finished_runs(values: list[float]) -> None:
    cell = cells(runs_table({("a", 0.1): values}), ["arm", "alpha"], LABELLING).iloc[0]
    done = [value for value in values if value == value]
    assert (cell["runs"], cell["failed"]) == (len(done), len(values) - len(done))
    if done:
        mean = sum(done) / len(done)
        assert cell["accuracy_mean"] == pytest.approx(mean)
        assert cell["seconds"] == pytest.approx(mean)
        if len(done) > 1:
            spread = (sum((value - mean) ** 2 for value in done) / (len(done) - 1)) ** 0.5
            assert cell["accuracy_std"] == pytest.approx(spread, abs=1e-12)
    assert np.isnan(cell["accuracy_std"]) == (len(done) < 2)


def test_the_front_is_within_a_task() -> None:
    table = pd.DataFrame(
        {
            "alpha": [0.5, 0.5, 0.5, 0.1, 0.1],
            "uploaded_bytes": [10.0, 20.0, 30.0, 10.0, 5.0],
            "accuracy_mean": [0.5, 0.6, 0.55, 0.2, np.nan],
        }
    )
    assert on_front(table, ["alpha"], LABELLING) == [True, True, False, True, False]
    assert on_front(table, [], LABELLING) == [True, True, False, False, False]


@given(points=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=9))
@settings(deadline=None, max_examples=40)
def test_the_front_of_models_that_write_has_the_lowest_perplexities(points: list[tuple[int, int]]) -> None:
    table = pd.DataFrame(points, columns=["uploaded_bytes", "perplexity_mean"], dtype=np.float64)
    for (cost, value), on in zip(points, on_front(table, [], WRITING), strict=True):
        assert on != any(c <= cost and v <= value and (c, v) != (cost, value) for c, v in points)


def test_shownof_models_that_write() -> None:
    values = {
        "perplexity": 0.0,
        "personal_perplexity": np.nan,
        "loss": 0.0,
        "token_accuracy": 0.0,
        "perplexity_at_2": 0.0,
    }
    rows = [
        {"arm": arm, "seed": seed, "status": "done", **dict.fromkeys((*values, *COSTS, *CLIENTS), value)}
        | {"personal_perplexity": value / 2 if arm == "own" else np.nan}
        for arm, several in {"one": [20.0, 24.0], "own": [30.0]}.items()
        for seed, value in enumerate(several)
    ]
    table = cells(pd.DataFrame(rows), ["arm"], WRITING)
    one = table.iloc[0]
    assert (one["perplexity_mean"], one["perplexity_std"]) == (22, pytest.approx(8**0.5))
    assert (one["perplexity_at_2_mean"], one["loss_mean"], one["client_worst_tenth_mean"]) == (22, 22, 22)
    assert not [name for name in table.columns if "accuracy" in name and "token" not in name]
    assert long_table(table, ["arm"], WRITING) == [
        ["arm", "round 2", "perplexity", "worst tenth", "uploaded parameters", "runs"],
        ["one", "22.00 ± 2.83", "22.00 ± 2.83", "22.00 ± 2.83", "22", "2"],
        ["own", "30.00", "15.00", "30.00", "30", "1"],
    ]
    assert wide_table(table, ["arm"], ["runs"], {("one", "2"): 21.5}, WRITING)[1] == [
        "one",
        "22.00 ± 2.83 (21.5)",
        "",
        "22",
    ]


def test_a_layout_as_in_a_paper() -> None:
    table = cells(
        runs_table({("a", 0.5): [0.8, 0.9], ("a", 0.1): [0.5], ("b", 0.5): [0.25]}), ["arm", "alpha"], LABELLING
    )
    rows = wide_table(table, ["arm"], ["alpha"], {("a", "0.1"): 93.24, ("c", "0.1"): 1.0}, LABELLING)
    assert rows == [
        ["arm", "0.1", "0.5", "uploaded parameters"],
        ["a", "50.0 (93.24)", "85.0 ± 7.1", "1"],
        ["b", "", "25.0", "0"],
    ]
    assert markdown(rows).splitlines()[1:3] == ["| --- | --- | --- | --- |", "| a | 50.0 (93.24) | 85.0 ± 7.1 | 1 |"]
    both = wide_table(
        table, ["arm"], ["alpha"], {("a", "0.5"): 90.0, ("a", "0.1"): 93.24, ("b", "0.1"): 40.0}, LABELLING
    )
    assert both[0][1:3] == ["0.5", "0.1"], "in the published order"
    assert both[2][1:3] == ["25.0", "(40)"], "a published figure without one of ours"
    assert plus_minus(LABELLING, float("nan"), 0) == "-"


@given(cores=st.integers(1, 9), processes=st.integers(1, 12))
def test_cores_are_shared_evenly(cores: int, processes: int) -> None:
    found = shares(list(range(cores)), processes)
    assert len(found) == processes
    if processes <= cores:
        assert sorted(core for share in found for core in share) == list(range(cores))
        assert max(map(len, found)) - min(map(len, found)) <= 1
    else:
        assert found == [list(range(cores))] * processes


# --- whole sweeps ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a data set and an experiment that takes a blink."""
    path = tmp_path_factory.mktemp("study")
    save_model(path / "model")
    for part, count in (("train", 36), ("test", 12)):
        (path / "texts").mkdir(exist_ok=True)
        save_data(path / "texts" / f"{part}.csv", count)
    (path / "tiny.toml").write_text(
        f"""
title = "Tiny"
[run]
data = "texts"
model = "{path / "model"}"
dtype = "float32"
partitioner = "iid"
num-clients = 2
num-server-rounds = 2
local-epochs = 1
r = 4
[grid]
seed = [0, 1]
[arms.ffa]
method = "ffa-lora"
[arms.ours]
method = "lora-a2"
rank-budget = 2
[tune]
learning-rates = [1e-7, 0.02]
[tune.run]
seed = 100
validation-fraction = 0.25
num-server-rounds = 1
[table]
rows = ["arm"]
columns = ["num-clients"]
at-rounds = [1]
[published]
columns = ["2"]
ours = [93.24]
"""
    )
    return path


def sweep(folder: Path, out: Path, *more: str) -> int:
    return main(["sweep", str(folder / "tiny.toml"), "--data-root", str(folder), "--output-dir", str(out), *more])


def snapshot(out: Path) -> dict[str, Any]:
    """What must not depend on how a sweep was run: the tables without times, what was tuned, and every adapter."""
    tables = {"runs": pd.read_csv(out / "runs.csv").drop(columns="seconds").to_csv()}
    if (out / "tuning.json").exists():
        tables["tuning"] = (out / "tuning.json").read_text()
    return tables | {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("adapter_model.safetensors"))}


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A sweep at one go, and what it prints."""
    out = tmp_path_factory.mktemp("whole") / "out"
    with redirect_stdout(StringIO()) as printed:
        assert sweep(folder, out, "--quiet", "--json") == 0
    return out, json.loads(printed.getvalue())


def test_a_sweep_tunes_runs_and_tabulates(whole: tuple[Path, dict[str, Any]]) -> None:
    out, found = whole
    tuning = json.loads((out / "tuning.json").read_text())
    assert [entry["arm"] for entry in tuning] == ["ffa", "ours"]
    for entry in tuning:
        assert entry["runs"] == 2, "every arm is given the same effort"
        scores = {c["learning_rate"]: c["mean_accuracy"] for c in entry["candidates"]}
        assert list(scores) == [1e-7, 0.02]
        assert entry["chosen"] == min(rate for rate in scores if scores[rate] == max(scores.values()))
    assert found["learning_rates"] == tuning
    for run in (out / "runs").glob("*-seed*"):
        config = RunConfig.model_validate(_toml(run / "config.toml"))
        chosen = next(entry["chosen"] for entry in tuning if run.name.startswith(entry["arm"]))
        assert (config.learning_rate, config.validation_fraction) == (chosen, None)
    runs = pd.read_parquet(out / "runs.parquet")
    assert len(runs) == 4 and set(runs["status"]) == {"done"}
    for name, group in runs.groupby("arm"):
        cell = next(cell for cell in found["results"] if cell["arm"] == name)
        assert cell["accuracy_mean"] == pytest.approx(group["accuracy"].mean())
        assert cell["accuracy_std"] == pytest.approx(group["accuracy"].std(ddof=1))
        assert cell["runs"] == 2
        first = json.loads((out / "runs" / group["run"].iloc[0] / "rounds.jsonl").read_text().splitlines()[0])
        assert group["accuracy_at_1"].iloc[0] == first["metrics"]["accuracy"]
    text = (out / "results.md").read_text()
    assert text.startswith("# Tiny")
    assert "(93.24) |" in text
    assert "round 1 %" in text
    assert len(pd.read_csv(out / "results.csv")) == len(pd.read_parquet(out / "results.parquet")) == 2


def _toml(path: Path) -> dict[str, Any]:
    import tomllib

    return tomllib.loads(path.read_text())


def test_the_same_command_goes_on(
    folder: Path,
    whole: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Interrupted in the tuning and in the runs, resumed by either command; the result is that of a sweep at one go."""
    broken = tmp_path / "broken"
    calls = itertools.count(1)
    launch = lora_a2.runs.jobs.launch

    def interrupted(*args: Any) -> Any:
        if next(calls) in (2, 6):
            raise KeyboardInterrupt
        return launch(*args)

    monkeypatch.setattr(lora_a2.runs.jobs, "launch", interrupted)
    for _ in range(2):
        assert sweep(folder, broken, "--quiet") == 130
        assert f"lora-a2 sweep --resume {broken}" in capsys.readouterr().err
    moved = broken.rename(tmp_path / "moved")
    assert main(["resume", str(moved), "--quiet"]) == 0
    assert "Tables" in capsys.readouterr().out
    expected = snapshot(whole[0])
    assert len(expected) == 2 + 4 + 4
    assert snapshot(moved) == expected
    assert main(["sweep", "--resume", str(moved), "--quiet"]) == 0
    assert snapshot(moved) == expected


def test_processes_of_their_own_change_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    here, apart = tmp_path / "here", tmp_path / "apart"
    given_here = ("--learning-rate", "0.01", "--seed", "0")
    assert sweep(folder, here, *given_here, "--quiet") == 0
    assert sweep(folder, apart, *given_here, "--processes", "2", "--devices", "cpu") == 0
    assert "2/2" in capsys.readouterr().err
    assert snapshot(here) == snapshot(apart)
    assert sorted(p.name for p in (apart / "runs" / "logs").iterdir()) == ["ffa.log", "ours.log"]


def test_a_failure_is_recorded_and_the_others_go_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launch = lora_a2.runs.jobs.launch

    def failing(config: RunConfig, observer: Any) -> Any:
        if config.method == "ffa-lora" and config.seed == 0:
            raise ReplyError("values that are not finite")
        return launch(config, observer)

    monkeypatch.setattr(lora_a2.runs.jobs, "launch", failing)
    out, more = tmp_path / "out", ("--learning-rate", "0.01", "--quiet")
    assert sweep(folder, out, *more) == 1
    assert "Failed: ffa-seed0  values that are not finite" in capsys.readouterr().out
    assert not (out / "tuning").exists(), "a rate was given"
    runs = pd.read_csv(out / "runs.csv").set_index("run")
    assert runs["status"].to_dict() == {
        "ffa-seed0": "failed",
        "ffa-seed1": "done",
        "ours-seed0": "done",
        "ours-seed1": "done",
    }
    failure = json.loads((out / "runs" / "failures" / "ffa-seed0.json").read_text())
    assert failure["error"] == "ReplyError" and "Traceback" in failure["traceback"]
    assert "1 (1 failed)" in (out / "results.md").read_text()
    monkeypatch.undo()
    assert sweep(folder, out, *more) == 1, "it is not tried again unasked"
    assert sweep(folder, out, *more, "--retry-failed") == 0
    assert set(pd.read_csv(out / "runs.csv")["status"]) == {"done"}


def test_a_process_that_dies_is_a_failure(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    out = tmp_path / "out"
    assert sweep(folder, out, "--learning-rate", "0.01", "--processes", "2") == 1
    assert "its process ended with status 1" in capsys.readouterr().out
    assert len(list((out / "runs" / "failures").iterdir())) == 4


def test_candidates_that_fail_are_out(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(config: RunConfig, observer: Any) -> Any:
        raise ReplyError("no")

    monkeypatch.setattr(lora_a2.runs.jobs, "launch", failing)
    assert sweep(folder, tmp_path / "out", "--quiet") == 2
    assert "No learning rate of ffa is left" in one_error(capsys)


def test_another_sweep_in_the_same_place_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(folder, tmp_path / "out", "--dry-run") == 0
    assert not (tmp_path / "out").exists()
    assert "ours-seed1" in capsys.readouterr().out
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sweep.json").write_text("{}")
    assert sweep(folder, tmp_path / "out") == 2
    assert "holds a sweep with another file or other options" in one_error(capsys)
    assert main(["sweep", "--resume", str(tmp_path / "out")]) == 2
    assert "SHA256SUMS is missing" in one_error(capsys)
    write_all(tmp_path / "out", {"sweep.json": b"{}"})
    assert main(["sweep", "--resume", str(tmp_path / "out")]) == 2
    assert "sweep.json is damaged" in one_error(capsys)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--alpha", "-1"], "ffa: alpha: -1"),
        (["--criterion", "magnitude"], "ffa: criterion"),
        (["--profile", "small"], "no profile 'small'"),
        (["--eval-every", "2"], "at-rounds: round 1 is not evaluated"),
        (["--processes", "0"], "--processes"),
    ],
)
def test_a_sweep_refuses_before_anything_runs(
    more: list[str], said: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(folder, tmp_path / "out", *more) == 2
    assert said in one_error(capsys)
    assert not (tmp_path / "out").exists()


def test_a_sweep_needs_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep"]) == 2
    assert "Name an experiment file" in one_error(capsys)


# --- the experiments that ship ---------------------------------------------------------------------------------------

FILES = sorted(EXPERIMENTS.glob("*.toml"))


def test_there_is_a_file_for_each_result() -> None:
    names = {path.stem for path in FILES}
    wanted = {f"table-{n}" for n in (1, 2, 3, 4, 7, 8, 9)} | {f"figure-{n}" for n in (3, 4, 5, 6, 8, 10)}
    wanted |= {"first-baseline", "rank-sensitivity", "clustering", "rounds", "families", "natural", "probe-kinds"}
    assert wanted <= names


@pytest.mark.parametrize("profile", ["published", "small"])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_experiments_are_valid_and_say_how_they_are_run(path: Path, profile: str) -> None:
    text = path.read_text()
    assert f"lora-a2 sweep experiments/{path.name}" in text, "the header has the command"
    assert "minutes" in text.split("\n\n")[0], "and how long it takes"
    experiment = parse_experiment(text, profile)
    fixed = {} if experiment.tuning is None else experiment.tuning.values
    arms = {} if experiment.tuning is None else experiment.tuning.arms
    found = points(experiment, {})
    configs = [point.config({}) for point in (*found, *points(experiment, fixed, arms))]
    if profile == "small":
        assert {config.model for config in configs} == {"all-MiniLM-L6-v2"}
        assert {config.max_length for config in configs} <= set(range(16, 65))
        assert experiment.tuning is None or all(config.validation_fraction for config in configs[len(found) :])
    if experiment.tuning is not None:
        effort = {arm.name: 0 for arm in experiment.arms}
        for point in points(experiment, fixed, arms):
            effort[point.arm] += point.config({}).num_server_rounds
        assert len(set(effort.values())) == 1, "every arm is tuned with the same effort"
    heads = {head for _, head in experiment.published}
    rows = {row for row, _ in experiment.published}
    known = {(" ".join(_labels(p, experiment.rows)), ", ".join(_labels(p, experiment.columns))) for p in found}
    if profile == "published" and heads:
        assert rows <= {row for row, _ in known}, "every published row is run"
        assert heads <= {head for _, head in known}


def _labels(point: Any, keys: Any) -> list[str]:
    config = point.config({})
    found = []
    for key in keys:
        value = point.arm if key == "arm" else getattr(config, key.replace("-", "_"))
        found.append(f"{value:g}" if isinstance(value, float) else str(value))
    return found


# --- models that write -----------------------------------------------------------------------------------------------

WRITTEN = """
title = "Written"
[run]
model = "{model}"
dtype = "float32"
partitioner = "iid"
num-clients = 2
num-server-rounds = 2
local-epochs = 1
r = 4
data = "{data}"
[grid]
seed = [0, 1]
[arms.ffa]
method = "ffa-lora"
[tune]
learning-rates = [1e-7, 0.02]
[tune.run]
seed = 100
num-server-rounds = 1
validation-fraction = 0.25
[table]
at-rounds = [1]
"""


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return writing_options(tmp_path_factory.mktemp("chats"), num_clients=2)


def test_the_rate_with_the_lowest_perplexity_is_chosen(chats: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "written.toml").write_text(WRITTEN.format(**chats))
    out = tmp_path / "out"
    assert main(["sweep", str(tmp_path / "written.toml"), "--output-dir", str(out), "--quiet"]) == 0
    (entry,) = json.loads((out / "tuning.json").read_text())
    scores = {c["learning_rate"]: c["mean_perplexity"] for c in entry["candidates"]}
    assert entry["candidates"][0]["perplexities"] == [scores[1e-7]]
    assert scores[0.02] < scores[1e-7]
    assert entry["chosen"] == 0.02
    runs, table = pd.read_csv(out / "runs.csv"), pd.read_csv(out / "results.csv")
    for path, row in ((out / "runs" / row["run"], row) for row in runs.to_dict("records")):
        first, last = (json.loads(line)["metrics"] for line in (path / "rounds.jsonl").read_text().splitlines())
        assert row["perplexity_at_1"] == pytest.approx(first["perplexity"])
        for name in ("perplexity", "loss", "token_accuracy", "client_mean", "client_worst_tenth"):
            assert row[name] == pytest.approx(last[name]), name
    assert table["perplexity_mean"][0] == pytest.approx(runs["perplexity"].mean())
    assert table["pareto"].tolist() == [True]
    assert not {"accuracy", "macro_f1", "task"} & {*runs.columns, *(n.removesuffix("_mean") for n in table.columns)}
    text = (out / "results.md").read_text()
    assert "Perplexity, mean ± standard deviation" in text
    assert not {"bleu", "rouge_l", "bleu_mean"} & {*runs.columns, *table.columns}, "nothing was written"
    assert "| round 1 | perplexity | worst tenth |" in text
    assert "%" not in text


def test_runs_of_two_tasks_have_a_table_each(
    folder: Path, chats: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The options need not say the task."""
    text = WRITTEN.format(**chats).replace('"ffa-lora"', '"lora-a2"').replace("seed = [0, 1]", "seed = [0]")
    untuned = text[: text.index("[tune]")] + text[text.index("[table]") :]
    arms = f"""
[arms.labels]
model = "{folder / "model"}"
data = "{folder / "texts"}"
[arms.ffa.grid]
rank-budget = [1, 2]
"""
    (tmp_path / "both.toml").write_text(untuned + arms)
    out = tmp_path / "out"
    assert main(["sweep", str(tmp_path / "both.toml"), "--output-dir", str(out), "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert printed.index("perplexity") < printed.index("accuracy %")
    runs, table = pd.read_csv(out / "runs.csv"), pd.read_csv(out / "results.csv")
    written, labelled = runs[runs["task"] == "causal-lm"], runs[runs["task"] == "classification"]
    assert (len(written), len(labelled)) == (2, 1)
    assert written["accuracy"].isna().all() and written["perplexity"].notna().all()
    assert labelled["perplexity_at_1"].isna().all() and labelled["accuracy_at_1"].notna().all()
    assert list(table["task"]) == ["causal-lm", "causal-lm", "classification"]
    assert table["pareto"].tolist()[2], "nothing of its own task beats it"
    assert sum(table["pareto"][:2]) >= 1
    text = (out / "results.md").read_text()
    assert "Perplexity and accuracy in percent, mean" in text
    assert text.count("| uploaded parameters | runs |") == 2
    assert main(["report", str(out), "--output", str(tmp_path / "page.html")]) == 2
    assert "of several tasks (causal-lm, classification)" in one_error(capsys)


def test_one_rate_is_not_chosen_for_two_tasks(
    chats: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in Path(chats["data"]).read_text().splitlines()]
    both = [{**row, "text": row["prompt"], "label": "ab"[k % 2]} for k, row in enumerate(rows)]
    (tmp_path / "both.jsonl").write_text("".join(json.dumps(row) + "\n" for row in both))
    text = WRITTEN.format(**{**chats, "data": tmp_path / "both.jsonl"})
    text = text.replace("seed = [0, 1]", 'task = ["classification", "causal-lm"]').replace("[1e-7, 0.02]", "[0.02]")
    (tmp_path / "two.toml").write_text(text)
    assert main(["sweep", str(tmp_path / "two.toml"), "--output-dir", str(tmp_path / "one"), "--quiet"]) == 2
    assert "The tuning runs of ffa are of several tasks (causal-lm, classification)" in one_error(capsys)
    (tmp_path / "two.toml").write_text(text.replace("[tune]\n", '[tune]\nper = ["task"]\n'))
    assert main(["sweep", str(tmp_path / "two.toml"), "--output-dir", str(tmp_path / "each"), "--quiet"]) == 0
    labelled, written = json.loads((tmp_path / "each" / "tuning.json").read_text())
    assert (labelled["task"], written["task"]) == ("classification", "causal-lm")
    assert 0 <= labelled["candidates"][0]["mean_accuracy"] <= 1 < written["candidates"][0]["mean_perplexity"]
    table = pd.read_csv(tmp_path / "each" / "results.csv")
    assert list(table["task"]) == ["classification", "causal-lm"]
    from lora_a2.report.batches import batch_sections

    (section,) = batch_sections([tmp_path / "each"])
    assert section.sentences[0].startswith("Mean accuracy or perplexity of the tuning runs")
    shown = [row[2] for row in section.tables[0][1].rows]
    assert shown == [
        f"{100 * labelled['candidates'][0]['mean_accuracy']:.1f} %",
        f"{written['candidates'][0]['mean_perplexity']:.2f}",
    ]
