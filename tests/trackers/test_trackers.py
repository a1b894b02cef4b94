"""Trackers against their real local stores: what is logged, that a resumed run goes on in the same place, and errors."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from cli_helpers import one_error
from lora_a2.cli import main
from lora_a2.config.run import RunConfig, dump_config
from lora_a2.errors import ConfigError, RunError
from lora_a2.federation.observer import Observer
from lora_a2.federation.records import RoundRecord
from lora_a2.runs.jobs import launch, resume
from lora_a2.trackers import TRACKERS, require_trackers
from lora_a2.trackers.observer import round_figures
from tiny import Stopping
from writers import writing_options

Curve = dict[int, float]

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")
"""MLflow 3.17 beside SQLAlchemy 2.1; it is not for us to mend."""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's default store is in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow store without runs, made once, since its migrations take seconds."""
    tracking = pytest.importorskip("mlflow.tracking", reason="mlflow is an extra")
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    tracking.MlflowClient(tracking_uri=f"sqlite:///{path}").create_experiment("lora-a2")
    return path


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> Path:
    """MLflow's default store, as it is in the working directory."""
    return Path(shutil.copy(empty_store, tmp_path / "mlflow.db"))


def config(options: dict[str, Any], path: Path, trackers: str) -> RunConfig:
    return RunConfig(**options, report_to=trackers, output_dir=str(path))


def broken_and_resumed(run: RunConfig) -> list[RoundRecord]:
    """A run stopped after its second round, which it has not committed, and then continued; its records."""
    with pytest.raises(KeyboardInterrupt):
        launch(run, Stopping(after=2))
    resume(str(run.output_dir), Observer())
    lines = (Path(str(run.output_dir)) / "rounds.jsonl").read_text().splitlines()
    return [RoundRecord.from_json(json.loads(line)) for line in lines]


def expected(records: list[RoundRecord]) -> dict[str, Curve]:
    """The figures that every tracker must hold, from the ledger."""
    sent = [r.uploaded_bytes for r in records]
    received = [r.downloaded_bytes for r in records]
    return {
        "eval/accuracy": {r.server_round: r.metrics["accuracy"] for r in records},
        "eval/macro_f1": {r.server_round: r.metrics["macro_f1"] for r in records},
        "eval/client_worst_tenth": {r.server_round: r.metrics["client_worst_tenth"] for r in records},
        "train/loss": {r.server_round: r.train_loss for r in records},
        "traffic/uploaded_bytes": {r.server_round: sum(sent[: r.server_round]) for r in records},
        "traffic/downloaded_bytes": {r.server_round: sum(received[: r.server_round]) for r in records},
        "seconds/train": {r.server_round: r.seconds["train"] for r in records},
    }


def test_a_model_that_writes_is_told_of_by_its_own_names(tmp_path: Path) -> None:
    """Of a method with personal models; rounds without evaluation have no such figures."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    more = {"method": "fedsa-lora", "num_server_rounds": 3, "eval_every": 2}
    records = broken_and_resumed(config({**writing_options(tmp_path), **more}, tmp_path / "run", "tensorboard"))
    metrics = ("perplexity", "loss", "token_accuracy", "client_mean", "client_worst_tenth")
    last = records[-1].metrics
    expected = {f"eval/{name}": last[name] for name in metrics}
    expected |= {f"eval/personal_{name}": last["personal"][name] for name in metrics}
    found = round_figures(records[-1])
    assert {name: value for name, value in found.items() if name.startswith("eval/")} == expected
    assert not any(name.startswith("eval/") for name in round_figures(records[0]))
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    for name, value in expected.items():
        assert [e.step for e in events.Scalars(name)] == [2, 3], name
        assert events.Scalars(name)[-1].value == pytest.approx(value, rel=1e-6), name
    assert events.Scalars("summary/perplexity")[0].value == pytest.approx(last["perplexity"], rel=1e-6)
    assert "summary/personal_perplexity" in events.Tags()["scalars"]


def test_tensorboard_goes_on_where_the_run_was_broken_off(options: dict[str, Any], tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    records = broken_and_resumed(config(options, tmp_path / "run", "tensorboard"))
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    for name, curve in expected(records).items():
        found = [(e.step, e.value) for e in events.Scalars(name)]
        assert [step for step, _ in found] == [1, 2, 3], name
        assert dict(found) == pytest.approx(curve, rel=1e-6), name
    assert events.Scalars("summary/accuracy")[0].value == pytest.approx(records[-1].metrics["accuracy"], rel=1e-6)
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    start = plugin_data_pb2.HParamsPluginData.FromString(
        events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    )
    assert start.session_start_info.hparams["learning-rate"].number_value == pytest.approx(5e-3)


def test_mlflow_goes_on_from_another_folder(
    options: dict[str, Any], store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    run = config(options, tmp_path / "runs" / "one", "mlflow")
    with pytest.raises(KeyboardInterrupt):
        launch(run, Stopping(after=2))
    client = MlflowClient(tracking_uri=f"sqlite:///{store}")
    assert [r.info.status for r in _runs(client)] == ["KILLED"]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    resume(tmp_path / "runs" / "one", Observer())
    assert not list((tmp_path / "elsewhere").iterdir())
    (found,) = _runs(client)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "one"
    assert found.data.params["learning-rate"] == "0.005"
    assert found.data.params["num-clients"] == "4"
    assert "output-dir" not in found.data.params
    ledger = (tmp_path / "runs" / "one" / "rounds.jsonl").read_text().splitlines()
    records = [RoundRecord.from_json(json.loads(line)) for line in ledger]
    for name, curve in expected(records).items():
        history = {m.step: m.value for m in client.get_metric_history(found.info.run_id, name)}
        assert history == pytest.approx(curve), name
    assert found.data.metrics["summary/accuracy"] == records[-1].metrics["accuracy"]


def _runs(client: Any) -> list[Any]:
    experiment = client.get_experiment_by_name("lora-a2")
    return list(client.search_runs([experiment.experiment_id]))


def test_wandb_keeps_its_run_offline(options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is an extra, not among those for developers")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    broken_and_resumed(config(options, tmp_path / "run", "wandb"))
    kept = json.loads((tmp_path / "run" / "trackers" / "wandb.json").read_text())
    files = list((tmp_path / "run" / "wandb").glob(f"offline-run-*/run-{kept['id']}.wandb"))
    assert files and all(file.stat().st_size > 0 for file in files)


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_tracker_is_one_line_before_anything_is_written(
    name: str,
    options: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("lora_a2.trackers.find_spec", lambda package: None)
    with pytest.raises(ConfigError, match=rf"pip install 'lora-a2\[{name}\]'"):
        require_trackers([name])
    assert main(["run", "--report-to", name, "--output-dir", str(tmp_path / "run")]) == 2
    assert f"'lora-a2[{name}]'" in one_error(capsys)
    assert not (tmp_path / "run").exists()


def test_the_option_is_checked_and_kept(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["run", "--report-to", "tensorbored"]) == 2
    assert "tensorboard, mlflow, wandb" in one_error(capsys)
    assert RunConfig(report_to="mlflow,tensorboard,mlflow").report_to == ("mlflow", "tensorboard")
    assert RunConfig(report_to="none").report_to == ()
    assert 'report-to = ["mlflow"]' in dump_config(RunConfig(report_to="mlflow"))


def test_a_tracker_that_cannot_be_opened_leaves_a_run_to_resume(
    options: dict[str, Any], store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://host")
    with pytest.raises(RunError, match=f"mlflow cannot be reported to: .*lora-a2 resume {tmp_path / 'run'}"):
        launch(config(options, tmp_path / "run", "mlflow"), Observer())
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert resume(tmp_path / "run", Observer()).server_rounds == 3


class Noting(Observer):
    """Keeps the notes, and takes the tracker's store away after the first round."""

    def __init__(self, store: Path) -> None:
        self.notes: list[str] = []
        self._store = store

    def round_done(self, record: RoundRecord) -> None:
        if record.server_round == 1:
            os.replace(self._store, self._store.with_suffix(".gone"))

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_a_tracker_that_fails_costs_a_note_not_the_run(options: dict[str, Any], store: Path, tmp_path: Path) -> None:
    observer = Noting(store)
    summary = launch(config(options, tmp_path / "run", "mlflow"), observer)
    assert summary.server_rounds == 3
    assert len(observer.notes) == 1
    assert observer.notes[0].startswith("mlflow failed and is not reported to any more: ")
