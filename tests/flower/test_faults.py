"""Every fault of `faults.py`, once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

pytest.importorskip("flwr", reason="needs lora-a2[flower]")

from faults import FAULTS, Subject, subject
from lora_a2.flower.deployment import PROXY
from needs import NGINX

pytestmark = [pytest.mark.slow, NGINX]


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    with subject(tmp_path_factory.mktemp("faults")) as made:
        yield made


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_run_survives(deployed: Subject, fault: Callable[[Subject], None]) -> None:
    fault(deployed)


def test_a_run_survives_a_proxy_that_is_killed(deployed: Subject) -> None:
    """A message under way may be lost, and is not sent again: that node misses the round, as if its network failed."""
    deployed.submit(min_train_nodes=2, round_timeout=8.0)
    deployed.wait_for_round(2)
    deployed.deployment.processes.kill(PROXY)
    deployed.deployment.start_proxy()
    deployed.finish()
    assert deployed.clients()[-1] == [0, 1, 2], deployed.said()
