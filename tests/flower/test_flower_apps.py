"""The Flower apps as users start them: settings, the written app, and Flower's real simulation engine."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.cli.build import build_fab_from_disk
from flwr.clientapp import ClientApp
from flwr.common.config import validate_config
from flwr.serverapp import ServerApp
from flwr.supercore.task_identity import TaskIdentity

from cli_helpers import one_error
from federation import save_data, save_model
from lora_a2.cli import main
from lora_a2.config.run import RunConfig, make_config
from lora_a2.errors import ConfigError
from lora_a2.federation.observer import Observer
from lora_a2.flower import client_app, server_app
from lora_a2.flower.app_folder import write_app as write_run_app
from lora_a2.flower.messages import request_content
from lora_a2.flower.new_app import default_config, write_app
from lora_a2.flower.options import ServerOptions, read_options, sent_config
from lora_a2.node.protocol import Answer, Request
from lora_a2.node.refusals import Reason
from lora_a2.runs.jobs import launch

ROOT = Path(__file__).resolve().parents[2]


# --- settings


def test_the_defaults_are_those_of_the_command_line() -> None:
    config, options = read_options(default_config())
    assert config == RunConfig()
    assert options == ServerOptions.model_validate({})


def test_the_components_exist() -> None:
    assert isinstance(server_app.app, ServerApp)
    assert isinstance(client_app.app, ClientApp)


def test_there_is_no_app_in_the_repository_s_own_project() -> None:
    """Flower would install this project's dependencies, PyTorch among them, for every run of it."""
    assert "flwr" not in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"learning-rat": 0.1}, "Unknown key 'learning-rat'; did you mean 'learning-rate'"),
        ({"min-train-nodes": 0}, "min-train-nodes: 0 should be greater than or equal to 1"),
        ({"evaluation": "client"}, "evaluation: 'client' is not one of auto, server, nodes, none"),
        ({"labels": "late"}, "labels: 'late' must be two or more different names"),
        ({"labels": "late,late"}, "must be two or more different names"),
        ({"labels": '["late", '}, "neither NAME,NAME,... nor a JSON list"),
        ({"clients-per-pass": 3, "num-server-rounds": 0}, "num-server-rounds: 0"),
    ],
)
def test_wrong_settings_are_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        read_options(given)
    assert "\n" not in str(caught.value)


def test_labels() -> None:
    assert ServerOptions(labels="late, lost").label_names() == ("late", "lost")  # type: ignore[call-arg]
    assert ServerOptions(labels='["a, b", "c"]').label_names() == ("a, b", "c")  # type: ignore[call-arg]


def test_nodes_are_not_told_of_the_server_s_own_machine() -> None:
    config = make_config({"output-dir": "/srv/runs/x", "device": "cpu", "num-workers": 3, "r": 8}, {})
    sent = sent_config(config)
    assert not {"output-dir", "device", "num-workers"} & set(sent)
    assert make_config(json.loads(json.dumps(sent)), {}).r == 8


# --- the ClientApp


@pytest.fixture
def own_log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """The node's own log; Flower's logger does not propagate by itself."""
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    return caplog


def context(**node_config: Any) -> Context:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    return Context(run_id=1, node_id=1, node_config=node_config, state=RecordDict(), run_config={})


def question() -> Message:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    asked = Request(kind="profile", run_id="a", run={}, labels=("a", "b"), partition=0, num_partitions=1)
    message = Message(request_content(asked), 1, "query.profile")
    message.metadata.__dict__["_message_id"] = "m"
    return message


@pytest.mark.parametrize(
    ("node_config", "reason", "logged"),
    [
        ({}, Reason.SETUP, "lacks partition-id or num-partitions"),
        ({"partition-id": "zero", "num-partitions": 2}, Reason.SETUP, "lacks partition-id"),
        ({"partition-id": 2, "num-partitions": 2}, Reason.RELEASE, "no partition 2 of 2"),
        ({"partition-id": 0, "num-partitions": 2}, Reason.SETUP, "names no worker-socket"),
        (
            {"partition-id": 0, "num-partitions": 2, "worker-socket": "/nowhere/s.sock"},
            Reason.WORKER,
            "No worker answers at /nowhere/s.sock (No such file or directory): start it with 'lora-a2 node'",
        ),
    ],
)
def test_a_node_that_is_not_set_up_says_in_its_log_what_is_missing(
    node_config: dict[str, Any],
    reason: Reason,
    logged: str,
    own_log: pytest.LogCaptureFixture,
) -> None:
    reply = client_app.app(question(), context(**node_config))
    assert reply.has_error()
    assert reply.error.reason == reason
    assert logged in own_log.text


@pytest.mark.parametrize(
    ("running", "actor", "expected"), [(True, "0a1b", True), (True, None, False), (False, None, False)]
)
def test_a_simulation_is_what_ray_says_it_is(
    running: bool, actor: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loaded Ray is not enough: a node would train on data of the server's choice."""
    runtime = SimpleNamespace(get_actor_id=lambda: actor)
    ray = SimpleNamespace(is_initialized=lambda: running, get_runtime_context=lambda: runtime)
    monkeypatch.setitem(sys.modules, "ray", ray)
    assert client_app.in_simulation() is expected
    monkeypatch.setitem(sys.modules, "ray", None)  # not installed
    assert client_app.in_simulation() is False


def test_a_message_of_something_else_is_refused(own_log: pytest.LogCaptureFixture) -> None:
    message = question()
    message.content["request"] = ConfigRecord({"lr": 0.1})
    reply = client_app.app(message, context(**{"partition-id": 0, "num-partitions": 2}))
    assert reply.error.reason == Reason.RELEASE
    assert "not a request of lora-a2" in own_log.text


@pytest.mark.parametrize("error", [ValueError("row 7 says HIV"), OSError(13, "HIV", "/srv/HIV"), MemoryError("HIV")])
def test_flower_is_not_left_to_tell_of_an_exception(
    error: Exception, monkeypatch: pytest.MonkeyPatch, own_log: pytest.LogCaptureFixture
) -> None:
    """It would send its text to the server."""

    def broken(*arguments: Any) -> Answer:
        raise error

    monkeypatch.setattr(client_app, "ask", broken)
    reply = client_app.app(question(), context(**{"partition-id": 0, "num-partitions": 2, "worker-socket": "s"}))
    assert reply.error.reason == Reason.FAILED
    assert "HIV" in own_log.text


def test_an_answer_that_says_more_than_numbers_is_not_passed_on(
    monkeypatch: pytest.MonkeyPatch, own_log: pytest.LogCaptureFixture
) -> None:
    for answer in (Answer({"label": "abc"}), Answer({"layout": "HIV"}), Answer({}, b"", ("HIV",))):
        monkeypatch.setattr(client_app, "ask", lambda *arguments, answer=answer: answer)
        reply = client_app.app(question(), context(**{"partition-id": 0, "num-partitions": 2, "worker-socket": "s"}))
        assert reply.error.reason == Reason.FAILED


# --- the written app


def test_a_new_app_has_what_flower_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "tickets"
    assert main(["flower", "new", str(folder)]) == 0
    assert "tickets/tickets/data.py" in capsys.readouterr().out
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()) == [
        *("README.md", "pyproject.toml"),
        *(f"tickets/{name}.py" for name in ("__init__", "client_app", "data", "server_app")),
    ]
    app = tomllib.loads((folder / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert app["config"] == default_config()
    for path in folder.rglob("*.py"):
        compile(path.read_text(), str(path), "exec")
    assert not [path for path in folder.rglob("*") if path.is_file() and "@" in path.read_text()]


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # of Flower's own
@pytest.mark.parametrize("name", ["tickets-app", "shop_desks", "a2"])
def test_a_name_is_valid_for_flower_and_for_python(name: str, tmp_path: Path) -> None:
    """Flower's own check of the app that it is sent: [project].name, components that exist, what may be in it."""
    folder = tmp_path / name
    assert main(["flower", "new", str(folder)]) == 0
    assert build_fab_from_disk(folder)
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    valid, errors, warnings = validate_config(project, project_dir=folder)
    assert valid and not errors and not warnings
    assert project["project"]["name"] == name.replace("_", "-")
    assert (folder / name.replace("-", "_") / "data.py").is_file()


@pytest.mark.parametrize("name", ["Tickets", "2x", "class", "a b", "a-", "-a", "a--b", "ä", "a" * 33])
def test_a_name_that_cannot_be_a_package_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["flower", "new", "--", str(tmp_path / name)]) == 2
    assert "cannot name an app" in one_error(capsys)
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("name", ["lora-a2", "json", "torch"])
def test_an_app_does_not_hide_what_is_installed(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flower", "new", str(tmp_path / name)]) == 2
    assert "would hide the one that is installed" in one_error(capsys)


def test_flower_has_nothing_to_install_for_what_we_write(tmp_path: Path) -> None:
    write_app(tmp_path / "tickets")
    write_run_app(tmp_path / "run", {"seed": 1})
    for folder in (tmp_path / "tickets", tmp_path / "run"):
        assert tomllib.loads((folder / "pyproject.toml").read_text())["project"]["dependencies"] == []


def test_a_folder_in_use_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "mine.txt").write_text("mine")
    assert main(["flower", "new", str(tmp_path / "app")]) == 2
    assert "is not empty" in one_error(capsys)


def test_the_written_data_module_gives_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_app(tmp_path / "shops")
    monkeypatch.syspath_prepend(str(tmp_path / "shops"))
    from shops.data import load_data  # type: ignore[import-not-found]

    assert len(load_data(RunConfig()).label_names) == 30


# --- Flower's simulation engine


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which `flwr run DIR engine` reaches a SuperLink of the test's own."""
    home = tmp_path_factory.mktemp("flwr")
    port, control = _free_port(), _free_port()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "engine"\n[superlink.engine]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    environment = {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    command = ["flower-superlink", "--simulation", "--insecure", "--isolation", "subprocess", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--control-api-address", f"127.0.0.1:{control}"]
    with (home / "superlink.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        _await_health(port)
        yield environment
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await_health(port: int) -> None:
    for _ in range(240):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError("the SuperLink did not start")


def flwr_run(app: Path, environment: dict[str, str], nodes: int, **run_config: Any) -> str:
    """The log of a simulation."""
    settings = " ".join(f"{key.replace('_', '-')}={json.dumps(value)}" for key, value in run_config.items())
    command = ["flwr", "run", str(app), "engine", "--stream", "--run-config", settings]
    command += ["--federation-config", f"num-supernodes={nodes} client-resources-num-cpus=1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora-a2", "fedsa-lora"])
def test_the_engine_gives_the_bytes_of_the_simulator(method: str, engine: dict[str, str], tmp_path: Path) -> None:
    given = {
        "data": str(save_data(tmp_path / "tiny.csv", 48)),
        "model": str(save_model(tmp_path / "model")),
        **{"dtype": "float32", "method": method, "num-server-rounds": 3, "local-epochs": 1, "r": 4},
        "fraction-train": 0.8,
    }
    write_app(tmp_path / "shops")
    log = flwr_run(tmp_path / "shops", engine, 4, **given, output_dir=str(tmp_path / "run"))
    assert "Finished 3 rounds" in log
    launch(make_config(given, {"output_dir": str(tmp_path / "twin"), "num_clients": 4}), Observer())
    for name in ("adapter/adapter_model.safetensors", "adapter/adapter_config.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "twin" / name).read_bytes()


@pytest.mark.slow
def test_the_commands_of_a_new_app_s_readme_run(engine: dict[str, str], tmp_path: Path) -> None:
    """The first command as written, then the one that resumes, on the run that the first one named."""
    write_app(tmp_path / "tickets")
    readme = (tmp_path / "tickets" / "README.md").read_text()
    first, again = (line for line in readme.splitlines() if line.startswith("flwr run . --"))
    done = subprocess.run(
        shlex.split(first), cwd=tmp_path / "tickets", env=engine, capture_output=True, text=True, timeout=900
    )
    found = re.search(r"Run directory: (\S+)", done.stdout + done.stderr)
    assert found is not None, done.stdout + done.stderr
    run = Path(found[1])
    assert (run / "adapter" / "adapter_config.json").is_file()
    assert len((run / "rounds.jsonl").read_text().splitlines()) == 2
    resume = shlex.split(again.replace("/path/to/run", str(run)))
    done = subprocess.run(resume, cwd=tmp_path / "tickets", env=engine, capture_output=True, text=True, timeout=900)
    assert "Finished 2 rounds" in done.stdout + done.stderr
