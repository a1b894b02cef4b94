"""Each client alone, all data in one place, and the result tuned for each client, beside the run's own result."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lora_a2.runs.baselines
from cli_helpers import one_error
from federation import study_options, tiny_clients, tiny_model
from lora_a2.analysis.baselines import BASELINES_FILE, TOGETHER, read_baselines, side_by_side
from lora_a2.cli import main
from lora_a2.config.run import RunConfig, make_config
from lora_a2.core.types import Adapter, ServerState
from lora_a2.display.console import PlainConsole
from lora_a2.display.live import LiveDisplay, PlainDisplay
from lora_a2.engine.work import end_to_end
from lora_a2.errors import ConfigError, RunError
from lora_a2.federation.loop import Plan
from lora_a2.federation.observer import Observer
from lora_a2.federation.population import Client
from lora_a2.federation.records import RoundRecord
from lora_a2.flower.options import read_options
from lora_a2.model.pretrained import Model
from lora_a2.runs.baselines import Result, centralised, local, trained, tuned
from lora_a2.runs.jobs import launch, resume
from lora_a2.runs.summary import RunSummary
from lora_a2.simulation import evaluate_clients, make_plan, make_workers, simulate
from lora_a2.studies.batch import PlannedRun
from lora_a2.tasks.registry import get_task
from run_files import contents
from writers import whole_model, writing_clients, writing_model, writing_options

LABELLING = "classification"
WRITING = "causal-lm"
OPTIONS: dict[str, Any] = {
    "num_server_rounds": 3,
    "local_epochs": 2,
    "batch_size": 3,
    "learning_rate": 0.01,
    "learning_rate_ratio": 2.0,
    "r": 3,
    "lr_scheduler_type": "linear",
    "num_workers": 1,
}


def federation(task: str) -> tuple[Model, tuple[Client, ...]]:
    if task == WRITING:
        return writing_model(whole_model("llama")), writing_clients((5, 9, 4))
    return tiny_model(head="trained"), tiny_clients((5, 9, 4))


def simulated(model: Model, clients: tuple[Client, ...], **options: Any) -> tuple[Plan, Result]:
    plan = make_plan(model, clients, **options)
    rounds = list(simulate(model, clients, plan))
    return plan, Result(rounds[-1][0], {}, [record for _, record in rounds])


def same(one: Adapter, other: Adapter) -> None:
    assert one.tensors.keys() == other.tensors.keys()
    for name, value in one.tensors.items():
        np.testing.assert_allclose(value, other.tensors[name], atol=1e-6)
    assert one.head.keys() == other.head.keys()
    for name, value in one.head.items():
        np.testing.assert_allclose(value, other.head[name], atol=1e-6)


@pytest.mark.parametrize("task", [LABELLING, WRITING])
@pytest.mark.parametrize("more", [{}, {"fraction_train": 0.67}, {"max_steps_per_round": 3}, {"proximal_mu": 1.0}])
def test_local_is_a_federation_of_one(task: str, more: dict[str, Any]) -> None:
    model, clients = federation(task)
    plan, result = simulated(model, clients, method="lora-a2", **OPTIONS, **more)
    config = RunConfig(**OPTIONS, **more)
    for client in clients:
        took_part = [r.server_round for r in result.records if any(c.id == client.id for c in r.clients)]
        own = local(config, model, plan, client, result.records)
        assert len(own.stages) == len(took_part)
        if took_part != [1, 2, 3]:
            continue
        alone = {**OPTIONS, **more, "fraction_train": 1.0, "proximal_mu": 0.0}
        twin = make_plan(model, [client], "fl-lora", **alone)
        *_, (state, _) = simulate(model, [client], twin)
        same(trained(model.network, own), state.adapter)
        steps = sum(stage.steps for stage in own.stages)
        assert steps == 3 * plan.federation.training.steps(len(client.train), plan.federation.local_epochs)


@pytest.mark.parametrize("task", [LABELLING, WRITING])
def test_centralised_is_a_federation_whose_only_client_has_all_data(task: str) -> None:
    model, clients = federation(task)
    plan, result = simulated(model, clients, method="lora-a2", **OPTIONS)
    found = centralised(RunConfig(**OPTIONS), model, plan, clients, result.records)
    everything = replace(clients[0], train=end_to_end([client.train for client in clients]))
    *_, (state, _) = simulate(model, [everything], make_plan(model, [everything], "fl-lora", **OPTIONS))
    same(trained(model.network, found), state.adapter)


def test_centralised_sees_each_example_as_often_as_the_federation() -> None:
    model, clients = federation(LABELLING)
    more = {"num_server_rounds": 6, "fraction_train": 0.34, "max_steps_per_round": 1}
    options = {**OPTIONS, **more}
    plan, result = simulated(model, clients, method="fl-lora", **options)
    found = centralised(RunConfig(**options), model, plan, clients, result.records)
    seen = sum(c.num_examples for r in result.records for c in r.clients) / sum(len(c.train) for c in clients)
    assert len(found.stages) == max(1, round(seen)) < 6
    assert all(stage.steps == len(clients) for stage in found.stages)  # one for each client


@pytest.mark.parametrize("method", ["lora-a2", "flora", "fed-sb", "ffa-lora", "fedsa-lora"])
def test_tuning_goes_on_from_the_result(method: str) -> None:
    model, clients = federation(LABELLING)
    options = {**OPTIONS, "num_server_rounds": 2}
    plan = make_plan(model, clients, method, **options)
    kept: dict[int, Any] = {}
    *_, (state, record) = simulate(model, clients, plan, kept=kept)
    config = RunConfig(**options, method=method, personalize=2)
    found = tuned(config, plan, clients[1], Result(state, kept, [record]))
    assert found.stages[0].steps == 2 * 3
    start, end = found.start.tensors, trained(model.network, found).tensors
    moved = {key for key in start if not np.array_equal(start[key], end[key])}
    assert {kind for kind, _ in moved} - {"head"} == ({"R"} if method == "fed-sb" else {"A", "B"})
    model.network.set_base({})


@pytest.fixture(scope="module", params=[LABELLING, WRITING])
def options(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("baselines")
    found = study_options(folder, 3) if request.param == LABELLING else writing_options(folder)
    return {**found, "partitioner": "iid", "baselines": "centralised,local", "personalize": 1}


def run(options: Mapping[str, Any], path: Path, observer: Observer | None = None, **more: Any) -> RunSummary:
    return launch(make_config({}, {**options, **more, "output_dir": str(path)}), observer or Observer())


def test_the_table(options: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = run(options, tmp_path / "run")
    plain = run(options, tmp_path / "plain", baselines=None, personalize=0)
    found = summary.to_json()["baselines"]
    assert "baselines" not in plain.to_json() and not (tmp_path / "plain" / BASELINES_FILE).exists()
    assert summary.metrics == plain.metrics
    kinds = ["local", TOGETHER, "tuned", "centralised"]
    assert list(found["mean"]) == kinds
    last = json.loads((tmp_path / "run" / "rounds.jsonl").read_text().splitlines()[-1])["metrics"]
    assert {row["client"]: row[TOGETHER] for row in found["clients"]} == last["per_client"]
    for kind in kinds:
        assert found["mean"][kind] == pytest.approx(np.mean([row[kind] for row in found["clients"]]))
    assert main(["resume", str(tmp_path / "run"), "--quiet"]) == 0
    printed = capsys.readouterr().out
    task = get_task(summary.task)
    assert f"Does joining help? {task.headline} on each client's test examples" in printed
    assert "\\n" not in printed
    for row in found["clients"]:
        line = next(line.split() for line in printed.splitlines() if line.strip().startswith(row["client"]))
        assert line[-4 * len(task.show(0.5).split()) :] == " ".join(task.show(row[k]) for k in kinds).split()


def test_twice_is_the_same_and_so_is_any_number_of_workers(options: dict[str, Any], tmp_path: Path) -> None:
    for name, workers in {"one": 1, "two": 2}.items():
        run(options, tmp_path / name, num_workers=workers)
    files = [(tmp_path / name / BASELINES_FILE).read_bytes() for name in ("one", "two")]
    assert files[0] == files[1]


class Killed(BaseException):
    """Stands for kill -9."""


def test_a_resumed_run_computes_what_is_missing(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**options, "num_workers": 1}
    whole = run(options, tmp_path / "whole")
    real = lora_a2.runs.baselines.write_sealed
    total = 3 + 3 + 1
    trained_again: list[int] = []

    def counting(*arguments: Any) -> Any:
        trained_again.append(1)
        return train(*arguments)

    train = lora_a2.runs.baselines.trained
    monkeypatch.setattr(lora_a2.runs.baselines, "trained", counting)
    for fatal in range(1, total + 1):
        calls = [0]

        def dying(path: Path, values: Mapping[str, Any], calls: list[int] = calls, fatal: int = fatal) -> None:
            calls[0] += 1
            if calls[0] == fatal:
                raise Killed
            real(path, values)

        path = tmp_path / f"killed-{fatal}"
        monkeypatch.setattr(lora_a2.runs.baselines, "write_sealed", dying)
        with pytest.raises(Killed):
            run(options, path)
        monkeypatch.setattr(lora_a2.runs.baselines, "write_sealed", real)
        trained_again.clear()
        assert resume(path, Observer()).baselines == whole.baselines
        assert len(trained_again) == total - (fatal - 1)  # nothing but the one in flight is lost
        assert contents(path) == contents(tmp_path / "whole")


def test_more_rounds_have_baselines_of_their_own(options: dict[str, Any], tmp_path: Path) -> None:
    run(options, tmp_path / "longer", num_server_rounds=3)
    run(options, tmp_path / "run")
    before = read_baselines(tmp_path / "run", 2)
    assert before and read_baselines(tmp_path / "run", 3) == {}
    resume(tmp_path / "run", Observer(), num_server_rounds=3)
    assert contents(tmp_path / "run") == contents(tmp_path / "longer")


def test_a_damaged_file_is_noticed(options: dict[str, Any], tmp_path: Path) -> None:
    run(options, tmp_path / "run", baselines="local", personalize=0)
    path = tmp_path / "run" / BASELINES_FILE
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"steps": ', b'"steps": 1', 1))
    assert path.read_bytes() != whole
    with pytest.raises(RunError, match=r"baselines.json is damaged.*Remove it to have it made again"):
        resume(tmp_path / "run", Observer())
    path.unlink()
    resume(tmp_path / "run", Observer())
    assert path.read_bytes() == whole


def test_who_has_no_value_is_in_no_mean() -> None:
    task = get_task(LABELLING)
    found = {"local": {"a": {"accuracy": 0.2}}}
    metrics = {"per_client": {"a": 0.4, "b": 0.8}, "per_client_examples": {"a": 5, "b": 7}}
    beside = side_by_side(task, found, metrics)
    assert beside["mean"] == {"local": 0.2, TOGETHER: 0.4} and beside["num_compared"] == 1
    assert beside["clients"][1] == {"client": "b", "num_examples": 7, "local": None, TOGETHER: 0.8}
    nobody = side_by_side(task, {"local": {}}, metrics)
    assert nobody["mean"] == {"local": None, TOGETHER: None}


def test_a_client_is_measured_as_the_run_measures(tmp_path: Path) -> None:
    model, clients = federation(LABELLING)
    plan, result = simulated(model, clients, method="fl-lora", **OPTIONS)
    found = centralised(RunConfig(**OPTIONS), model, plan, clients, result.records)
    measured = lora_a2.runs.baselines._work(model.task, [found])(model.network, 0)
    state = ServerState(3, trained(model.network, found), 0)
    with make_workers(model, 1) as pool:
        expected = evaluate_clients(model, pool, state, clients).per_client
    assert {name: own["accuracy"] for name, own in measured.items()} == expected


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--baselines", "global"], "'global' is not one of local, centralised"),
        (["--baselines", "local,"], "an empty name"),
        (["--baselines", "local", "--method", "full"], "baselines: it trains adapters, and full trains every weight"),
        (["--personalize", "1", "--method", "full"], "personalize: it trains adapters"),
        (["--personalize", "-1"], "personalize"),
    ],
)
def test_what_makes_no_sense_is_refused(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *flags]) == 2
    assert said in one_error(capsys)


def test_a_server_of_nodes_has_no_training_data() -> None:
    for name, value in {"baselines": "local", "personalize": 2}.items():
        with pytest.raises(ConfigError, match=f"{name}: a Flower server has no client's training data"):
            read_options({name: value})


def test_names_are_in_one_order_and_any_case() -> None:
    assert make_config({}, {"baselines": "Centralised,LOCAL,local"}).baselines == ("local", "centralised")
    assert make_config({}, {}).baselines is None


def test_records_count_up_to_the_round_that_is_kept() -> None:
    model, clients = federation(LABELLING)
    plan, result = simulated(model, clients, method="fl-lora", **OPTIONS)
    first: list[RoundRecord] = list(result.records[:1])
    config = RunConfig(**OPTIONS)
    assert len(local(config, model, plan, clients[0], first).stages) == 1
    assert len(centralised(config, model, plan, clients, first).stages) == 1


def test_a_comparison_keeps_them(options: dict[str, Any], tmp_path: Path) -> None:
    config = make_config({}, {**options, "baselines": "local", "personalize": 0, "output_dir": str(tmp_path / "run")})
    planned = PlannedRun("run", config)
    done = planned.run(Observer())
    read_back = planned.summary()
    assert read_back is not None and read_back.baselines == done.baselines
    assert done.baselines is not None and list(done.baselines["mean"]) == ["local", TOGETHER]


def test_a_client_without_tests_is_in_no_table_and_a_new_one_is_not_alone() -> None:
    model, clients = federation(LABELLING)
    silent = replace(clients[1], test=clients[1].test.take(np.zeros(0, np.int64)))
    clients = (clients[0], silent, clients[2])
    plan, result = simulated(model, clients, method="fl-lora", **{**OPTIONS, "num_server_rounds": 1})
    absent = [replace(r, clients=[c for c in r.clients if c.id != 2]) for r in result.records]
    config = RunConfig(**OPTIONS, baselines="local,centralised", personalize=1)
    found = lora_a2.runs.baselines._wanted(config, model, plan, clients, replace(result, records=absent))
    assert [(b.kind, [c.id for c in b.clients]) for b in found] == [
        ("local", [0]),
        ("tuned", [0]),
        ("tuned", [2]),
        ("centralised", [0, 2]),
    ]


class Listening(Observer):
    """Keeps what it is told of baselines."""

    def __init__(self) -> None:
        self.heard: list[tuple[int, int]] = []

    def baselines_done(self, done: int, total: int) -> None:
        self.heard.append((done, total))


def test_an_observer_hears_of_each(options: dict[str, Any], tmp_path: Path) -> None:
    observer = Listening()
    run(options, tmp_path / "run", observer)
    assert observer.heard == [(k, 7) for k in range(8)]
    again = Listening()
    resume(tmp_path / "run", again)
    assert again.heard == []


@pytest.mark.parametrize("live", [True, False])
def test_the_displays_count_them(live: bool) -> None:
    console = PlainConsole(file=io.StringIO(), force_terminal=live, width=80, record=True)
    display = LiveDisplay(console) if live else PlainDisplay(console)
    with display:
        for done in range(3):
            display.baselines_done(done, 2)
        if isinstance(display, LiveDisplay):
            console.print(display._live.renderable)
    printed = console.export_text()
    assert "2/2" in printed and "ompared with" in printed
