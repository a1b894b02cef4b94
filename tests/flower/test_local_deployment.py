"""`lora-a2 flower local-deployment`, from the command line to the end of the last process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytest.importorskip("flwr", reason="needs lora-a2[flower]")

from cli_helpers import one_error
from faults import tiny_config
from federation import save_data
from inotify import opened
from listening_proxy import ListeningProxy
from lora_a2.cli import main
from lora_a2.config.run import RunConfig
from lora_a2.errors import ConfigError
from lora_a2.federation.observer import Observer
from lora_a2.flower import proxy
from lora_a2.flower.local import LocalDeployment, follow, local_deployment, server_line
from lora_a2.flower.shares import TEST, TRAIN, share_of
from lora_a2.node.protocol import Request, ask
from lora_a2.runs.jobs import launch
from needs import NGINX
from writers import save_questions, save_writer

PROGRAM = Path(sys.executable).with_name("lora-a2")
NODES = 2


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """The command, with its own home and folder for temporary files."""
    for name in ("home", "tmp"):
        (folder / name).mkdir(exist_ok=True)
    environment = {**os.environ, "HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [str(PROGRAM), "flower", "local-deployment", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def options(config: RunConfig) -> list[str]:
    """The flags of a configuration."""
    given = config.model_dump(mode="json", by_alias=True, exclude_unset=True)
    del given["num-clients"]
    return [f"--{key}={value}" for key, value in given.items()]


def assert_nothing_is_left(folder: Path) -> None:
    """No process, no temporary file, and nothing in the user's home."""
    assert list((folder / "tmp").iterdir()) == []
    assert list((folder / "home").iterdir()) == []
    started = [process for process in psutil.process_iter(["cmdline"]) if str(folder / "tmp") in str(process.info)]
    assert started == []


def adapter(run: Path) -> dict[str, bytes]:
    """The result's bytes."""
    return {path.name: path.read_bytes() for path in sorted((run / "adapter").iterdir())}


def simulated(config: RunConfig, folder: Path) -> dict[str, bytes]:
    """The adapter of `lora-a2 run`."""
    launch(config.model_copy(update={"output_dir": str(folder / "simulated")}), Observer())
    return adapter(folder / "simulated")


@NGINX
def test_it_ends_in_the_bytes_of_a_run(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, num_clients=NODES, num_server_rounds=2, output_dir=str(tmp_path / "deployed"))
    command = start(tmp_path, "--nodes", str(NODES), "--min-train-nodes", str(NODES), "--json", *options(config))
    out, err = command.communicate(timeout=300)
    assert command.returncode == 0, err
    summary = json.loads(out)
    assert summary["server_rounds"] == 2
    assert summary["output_dir"] == str(tmp_path / "deployed")
    assert summary["uploaded_bytes"] > 0
    assert "Round 2/2" in err
    assert adapter(tmp_path / "deployed") == simulated(config, tmp_path)
    assert_nothing_is_left(tmp_path)


@pytest.mark.slow
@NGINX
def test_a_model_that_writes_is_trained_and_evaluated_on_its_nodes(tmp_path: Path) -> None:
    """The task is found by the columns, and what nodes tell of an evaluation comes through."""
    data, model = save_questions(tmp_path / "questions.jsonl", 30), save_writer(tmp_path / "model")
    run = tmp_path / "deployed"
    command = start(
        tmp_path,
        *("--nodes", str(NODES), "--min-train-nodes", str(NODES), "--json", f"--data={data}", f"--model={model}"),
        *("--num-server-rounds=2", "--local-epochs=1", "--max-length=60", "--r=4", "--dtype=float32"),
        *("--partitioner=iid", "--generate=4", f"--output-dir={run}"),
    )
    out, err = command.communicate(timeout=300)
    assert command.returncode == 0, err
    assert "was not evaluated" not in err
    assert json.loads(out)["perplexity"] > 1
    records = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    assert len(records) == 2 and all(record["metrics"]["chrf"] >= 0 for record in records)
    assert_nothing_is_left(tmp_path)


@pytest.mark.slow
@NGINX
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_one_leaves_nothing_but_its_run(tmp_path: Path, number: signal.Signals) -> None:
    config = tiny_config(tmp_path, num_clients=NODES, num_server_rounds=8, output_dir=str(tmp_path / "deployed"))
    command = start(tmp_path, "--nodes", str(NODES), "--min-train-nodes", str(NODES), *options(config))
    ledger = tmp_path / "deployed" / "rounds.jsonl"
    end = time.monotonic() + 240
    while not ledger.exists() or ledger.read_bytes().count(b"\n") < 2:
        assert command.poll() is None, command.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)
    command.send_signal(number)
    _, err = command.communicate(timeout=60)
    assert command.returncode == 128 + number
    assert f"local-deployment --resume {tmp_path / 'deployed'}" in err.splitlines()[-1]
    assert_nothing_is_left(tmp_path)
    command = start(tmp_path, "--resume", str(tmp_path / "deployed"), "--min-train-nodes", str(NODES))
    _, err = command.communicate(timeout=500)
    assert command.returncode == 0, err
    assert adapter(tmp_path / "deployed") == simulated(config, tmp_path)
    assert_nothing_is_left(tmp_path)


def test_a_run_that_cannot_be_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flower", "local-deployment", "--data", str(tmp_path / "none.csv"), "--quiet"]) == 2
    assert "none.csv" in one_error(capsys)
    (tmp_path / "taken").touch()
    assert main(["flower", "local-deployment", "--output-dir", str(tmp_path / "taken"), "--quiet"]) == 2
    assert "already holds something else" in one_error(capsys)


def test_without_nginx_it_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy.shutil, "which", lambda *given, **options: None)
    config = tiny_config(tmp_path, num_clients=NODES, output_dir=str(tmp_path / "deployed"))
    capsys.readouterr()
    assert main(["flower", "local-deployment", f"--nodes={NODES}", "--quiet", *options(config)]) == 2
    assert "install it (apt-get install nginx)" in one_error(capsys)


@pytest.mark.parametrize("path", ['/home/a"b', "/home/$uri", "/home/a\\b", "/home/a\nb"])
def test_a_path_that_nginx_would_read_otherwise_is_refused(path: str) -> None:
    given = {"listen": "9092", "superlink": "127.0.0.1:8000", "key": Path("/k"), "authority": Path("/a")}
    with pytest.raises(ConfigError, match="nginx cannot be told"):
        proxy.configuration(certificate=Path(path), **given)  # type: ignore[arg-type]


def test_each_worker_reads_its_own_data_alone(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, num_clients=3)
    with local_deployment(config, tmp_path / "state") as deployment:
        folders = [share_of(deployment.shares, node) for node in range(3)]
        assert all((folder / TRAIN).exists() for folder in folders)
        with opened(folders) as files:
            deployment.start_worker(1)
            deployment.processes.wait_until(deployment.socket(1).exists, "Starting the worker")
            answer = ask(deployment.socket(1), profile(deployment), timeout=120, limit=0)
    assert (
        answer.metrics["num_examples"] == (folders[1] / TRAIN).read_text().count("\n") if folders[1].exists() else True
    )
    assert files == {folders[1] / TRAIN, folders[1] / TEST}


@pytest.mark.slow
@NGINX
def test_no_text_and_no_label_leaves_a_node(tmp_path: Path) -> None:
    """Every byte that a node sends in a run, without TLS: replies, and all other messages of Flower."""
    labels = ("Mahnung", "Kuendigung", "Rueckfrage")
    data = save_data(tmp_path / "secret.csv", 40, labels)
    config = tiny_config(tmp_path, data=str(data), num_clients=1, num_server_rounds=3, output_dir=str(tmp_path / "run"))
    with local_deployment(config, tmp_path / "state") as deployment:
        deployment.start_superlink()
        deployment.register(0)
        deployment.start_worker(0)
        deployment.processes.wait_until(deployment.socket(0).exists, "Starting the worker")
        with ListeningProxy(deployment.port, deployment.certificates) as proxy:
            deployment.start_node(0, port=proxy.port)
            deployment.submit({})
            follow(deployment, print)
    uploads = [
        json.loads(line)["uploaded_bytes"] for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()
    ]
    assert sum(proxy.sent.values()) == len(proxy.heard) > sum(uploads)
    assert proxy.heard.count(b"LoA2") == len(uploads) == 3
    texts = [line.rpartition(",")[0] for line in data.read_text().splitlines()[1:]]
    for secret in (*labels, *texts):
        assert secret.encode() not in proxy.heard


def profile(deployment: LocalDeployment) -> Request:
    """A server's first request to a node."""
    return Request(
        kind="profile",
        run_id="1",
        run=deployment.config.model_dump(
            mode="json", by_alias=True, exclude_none=True, include={"model", "dtype", "r"}
        ),
        labels=deployment.labels,
        partition=1,
        num_partitions=3,
    )


def test_shares_are_a_partition_of_the_data(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, num_clients=3)
    with local_deployment(config, tmp_path / "state") as deployment:
        files = [share_of(deployment.shares, node) / name for node in range(3) for name in (TRAIN, TEST)]
        rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        assert not deployment.processes.members()
    lines = (tmp_path / "data.csv").read_text().splitlines()[1:]
    assert sorted(f"{row['text']},{row['label']}" for row in rows) == sorted(lines)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"\x1b[92mINFO \x1b[0m:      Round 1/2: loss 1.2\n", "Round 1/2: loss 1.2"),
        (
            b"\x1b[93mWARNING \x1b[0m:   Round 2: client 1 does not count: late\n",
            "Round 2: client 1 does not count: late",
        ),
        (b"Using SuperLink: deployment (127.0.0.1:1)\n", ""),
        (b"\x1b[92mINFO \x1b[0m:      \n", ""),
    ],
)
def test_what_the_server_says(line: bytes, said: str) -> None:
    assert server_line(line) == said


def test_what_follows_upon_an_error_is_shown() -> None:
    assert server_line(b'  File "app.py", line 3\n') == ""
    assert server_line(b'  File "app.py", line 3\n', failed=True) == '  File "app.py", line 3'
