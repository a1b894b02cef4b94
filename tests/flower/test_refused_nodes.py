"""Who may not join a deployment: real processes over TLS on the loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="needs lora-a2[flower]")

from lora_a2.errors import RunError
from lora_a2.flower.certificates import make_certificates
from lora_a2.flower.deployment import Deployment, supernode
from lora_a2.flower.processes import Processes, free_port
from needs import NGINX

pytestmark = NGINX


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A SuperLink that knows the keys of nodes 0 and 2."""
    with Processes(tmp_path_factory.mktemp("deployment")) as processes:
        started = Deployment(processes, nodes=3)
        started.start_superlink()
        started.register(0)
        started.register(2)
        yield started
    assert not processes.members()


def refused(deployment: Deployment, name: str) -> str:
    """A SuperNode's output when it gives up."""
    processes = deployment.processes
    with pytest.raises(RunError, match=f"{name} ended with status") as error:
        processes.wait_until(lambda: False, "refusing the node")
    processes.stop(name)
    assert "SuperNode ID" not in processes.log(name).read_text()
    return str(error.value)


def test_a_registered_key_is_let_in(deployment: Deployment) -> None:
    deployment.start_supernode(0, {})
    log = deployment.processes.log(supernode(0))
    deployment.processes.wait_until(lambda: "SuperNode ID" in log.read_text(), "joining")
    deployment.processes.stop(supernode(0))


def test_a_key_that_nobody_registered_is_refused(deployment: Deployment) -> None:
    deployment.start_supernode(1, {})
    assert "Failed to activate SuperNode" in refused(deployment, supernode(1))


def test_a_node_refuses_a_server_of_another_authority(deployment: Deployment, tmp_path: Path) -> None:
    other = make_certificates(tmp_path / "other", nodes=0)
    deployment.start_supernode(2, {}, authority=other.authority)
    assert "CERTIFICATE_VERIFY_FAILED" in refused(deployment, supernode(2))


def test_plain_text_is_refused(deployment: Deployment) -> None:
    command = ["--insecure", f"--superlink={deployment.address}", f"--port={free_port()}", "--max-retries=1"]
    deployment.processes.start("plain", ["flower-supernode", *command])
    assert "could not establish a connection" in refused(deployment, "plain")
