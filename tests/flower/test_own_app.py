"""A server that sends its own programs: our SuperNode runs none of them; Flower's does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="needs lora-a2[flower]")

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.supercore.constant import TaskType
from flwr.supercore.superexec.executor.types import ExecutionSpec, LaunchResultStatus
from flwr.supernode.runtime import run_clientapp

from lora_a2.errors import RunError
from lora_a2.flower import client_app
from lora_a2.flower.deployment import RUN, Deployment, supernode
from lora_a2.flower.patience import Patience
from lora_a2.flower.processes import Processes, free_port
from lora_a2.flower.superexec import REPLACED, ForkingExecutor, use_own_client_app
from needs import NGINX

PROJECT = """
[project]
name = "others"
version = "1.0.0"
description = "Somebody else's"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "others"
[tool.flwr.app.components]
serverapp = "others.server:app"
clientapp = "others.client:app"
[tool.flwr.app.config]
"""
SERVER = """
import time
from flwr.app import Message, RecordDict
from flwr.serverapp import ServerApp
app = ServerApp()

@app.main()
def main(grid, context):
    while not (nodes := list(grid.get_node_ids())):
        time.sleep(0.1)
    (reply,) = grid.send_and_receive([Message(RecordDict(), node, "query") for node in nodes])
    print("ANSWER", reply.error.reason if reply.has_error() else "its program ran", flush=True)
"""
CLIENT = """
from pathlib import Path
Path({mark!r}).touch()
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp
app = ClientApp()

@app.query()
def query(message, context):
    return Message(RecordDict(), reply_to=message)
"""


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with Processes(tmp_path_factory.mktemp("deployment")) as processes:
        started = Deployment(processes, nodes=3)
        started.start_superlink()
        for node in range(3):
            started.register(node)
        yield started


def write_others_app(folder: Path, mark: Path) -> Path:
    """An app whose ClientApp leaves a mark wherever it is imported."""
    (folder / "others").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(PROJECT)
    (folder / "others" / "__init__.py").touch()
    (folder / "others" / "server.py").write_text(SERVER)
    (folder / "others" / "client.py").write_text(CLIENT.format(mark=str(mark)))
    return folder


def start_flowers_supernode(deployment: Deployment, node: int, *options: str) -> None:
    made = deployment.certificates
    command = [
        *("flower-supernode", f"--root-certificates={made.authority}", f"--superlink={deployment.address}"),
        *(f"--auth-supernode-private-key={made.node_key(node)}", f"--port={free_port()}", *options),
    ]
    deployment.processes.start(supernode(node), command)


@pytest.mark.slow
@NGINX
@pytest.mark.parametrize(("whose", "ran"), [("ours", False), ("Flower's", True), ("Flower's, signed apps only", False)])
def test_what_a_node_runs(deployment: Deployment, tmp_path: Path, whose: str, ran: bool) -> None:
    node = ["ours", "Flower's", "Flower's, signed apps only"].index(whose)
    key = Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    (tmp_path / "trusted.yaml").write_text(f"fpk_operator: '{key}'\n")
    match whose:
        case "ours":
            deployment.start_supernode(node, {})
        case "Flower's":
            start_flowers_supernode(deployment, node)
        case _:
            start_flowers_supernode(deployment, node, f"--trusted-entities={tmp_path / 'trusted.yaml'}")
    processes, mark = deployment.processes, tmp_path / "mark"
    processes.log(RUN).unlink(missing_ok=True)
    deployment.start_run(write_others_app(tmp_path / "app", mark))
    processes.wait_until(lambda: not processes.alive(RUN), "the run", limit=120)
    processes.finish(RUN)
    said = processes.log(RUN).read_text()
    processes.stop(supernode(node))
    answer = next(line.partition("ANSWER ")[2] for line in said.splitlines() if "ANSWER" in line)
    assert mark.exists() == ran, said
    expected = {"ours": "query", "Flower's": "its program ran", "Flower's, signed apps only": "could not be verified"}
    assert expected[whose] in answer, answer


def test_no_other_task_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = ForkingExecutor(Patience())
    assert executor.get_eligible_capacity(set(TaskType)) == ({TaskType.CLIENT_APP}, set())
    for kind in set(TaskType) - {TaskType.CLIENT_APP}:
        spec = ExecutionSpec(kind, "127.0.0.1:1", "token", True, None, False, None, False, 1)
        assert executor.launch(spec).status is LaunchResultStatus.FAILED


def test_a_release_that_loads_apps_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in REPLACED:
        monkeypatch.setattr(run_clientapp, name, None)  # restored at the end
    use_own_client_app()
    assert run_clientapp.get_load_client_app_fn()("others", "1.0.0", "hash") is client_app.app
    for name in REPLACED:
        with monkeypatch.context() as patch:
            patch.delattr(run_clientapp, name)
            with pytest.raises(RunError, match=f"it has no {name}"):
                use_own_client_app()
