"""Every byte that a real node sends after errors: fixed sentences, and no path, column, label or text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="needs lora-a2[flower]")

from faults import tiny_config
from federation import save_data
from listening_proxy import ListeningProxy
from lora_a2.flower.local import LocalDeployment, follow, local_deployment, worker
from lora_a2.flower.shares import TRAIN, share_of
from lora_a2.node.refusals import Reason
from needs import NGINX

LABELS = ("Mahnung", "Kuendigung", "Rueckfrage")

pytestmark = [pytest.mark.slow, NGINX]


@pytest.fixture(scope="module")
def listened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LocalDeployment, ListeningProxy]]:
    """A node, and a proxy that records all that it sends."""
    folder = tmp_path_factory.mktemp("listened")
    data = save_data(folder / "secret.csv", 40, LABELS)
    config = tiny_config(folder, data=str(data), num_clients=1, num_server_rounds=1, output_dir=str(folder / "run"))
    with local_deployment(config, folder / "state") as deployment:
        deployment.start_superlink()
        deployment.register(0)
        deployment.start_worker(0)
        deployment.processes.wait_until(deployment.socket(0).exists, "Starting the worker")
        with ListeningProxy(deployment.port, deployment.certificates) as proxy:
            deployment.start_node(0, port=proxy.port)
            yield deployment, proxy


def provoke(deployment: LocalDeployment, reason: Reason, **options: str | int | float) -> None:
    """Starts a run that the node refuses for this reason."""
    given = {name.replace("_", "-"): value for name, value in options.items()}
    said: list[str] = []
    deployment.submit({"node-timeout": 6.0, "evaluation": "none", **given})
    follow(deployment, said.append)
    assert any(reason in line for line in said), said


def test_whatever_goes_wrong_a_fixed_sentence_is_all_that_is_heard(
    listened: tuple[LocalDeployment, ListeningProxy], tmp_path: Path
) -> None:
    deployment, proxy = listened
    texts = [line.split('"')[3] for line in (share_of(deployment.shares, 0) / TRAIN).read_text().splitlines()]
    secrets = [*LABELS, *texts, str(deployment.processes.home), str(deployment.shares), TRAIN, "worker-0", ".sock"]

    provoke(deployment, Reason.DATA, labels="eins,zwei", output_dir=str(tmp_path / "labels"))
    provoke(deployment, Reason.POLICY, local_epochs=100_000, output_dir=str(tmp_path / "epochs"))
    (share_of(deployment.shares, 0) / TRAIN).unlink()
    provoke(deployment, Reason.DATA, seed=7, output_dir=str(tmp_path / "file"))
    deployment.processes.stop(worker(0))
    provoke(deployment, Reason.WORKER, output_dir=str(tmp_path / "worker"))
    for reason in (Reason.DATA, Reason.POLICY, Reason.WORKER):
        assert reason.encode() in proxy.heard
    for secret in secrets:
        assert secret.encode() not in proxy.heard, secret
