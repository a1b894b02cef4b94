"""Faults of deployments, injected into real processes on the loopback: each fault is a function that checks the outcome.

Node 1 has a proxy in front of its worker, honest or not (`misbehaving_worker.py`). A fault leaves the deployment as it found
it, with all nodes up, so that the next fault can use the same processes, as in a lasting deployment.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from federation import save_data, save_model
from lora_a2.config.run import RunConfig, make_config
from lora_a2.flower.app_folder import Value
from lora_a2.flower.deployment import RUN, SUPERLINK, supernode
from lora_a2.flower.local import LocalDeployment, local_deployment

DOUBLE = Path(__file__).with_name("misbehaving_worker.py")
BAD = 1
"""The node with the proxy."""
NODES = 3
LIMIT = 240.0
"""Seconds; nothing here may take longer."""

Outcome = tuple[dict[str, bytes], list[dict[str, Any]], list[bytes]]
"""The result's bytes by file, the rounds without their times, and the nodes' stored state."""


class Subject:
    """A deployment under test, and its runs, each in its own folder under `folder`."""

    def __init__(self, deployment: LocalDeployment, folder: Path) -> None:
        self.deployment, self.folder, self.run = deployment, folder, folder / "none"
        self._runs = 0
        self._undisturbed: dict[str, Outcome] = {}

    # --- nodes ---

    def start_double(self, *faults: str) -> None:
        """Replaces the proxy of node 1 with one that injects `faults`."""
        processes = self.deployment.processes
        if processes.alive("double"):
            processes.stop("double")
        processes.log("double").write_bytes(b"")
        front, real = self.front(BAD), self.deployment.socket(BAD)
        front.unlink(missing_ok=True)
        processes.start("double", ["python", str(DOUBLE), str(front), str(real), *faults])
        processes.wait_until(front.exists, "Starting the double")

    def front(self, node: int) -> Path:
        """The socket that a node's ClientApp connects to."""
        real = self.deployment.socket(node)
        return real.with_name(f"front-{node}.sock") if node == BAD else real

    def start_node(self, node: int) -> None:
        """Starts a SuperNode repeatedly until the SuperLink admits it, as a service manager does: a killed one counts as
        present for a minute, and its successor is refused meanwhile."""
        processes, name = self.deployment.processes, supernode(node)
        log = processes.log(name)

        def joined() -> bool:
            if not processes.alive(name):
                processes.stop(name)
                start()
            return b"SuperNode ID" in log.read_bytes()

        def start() -> None:
            log.unlink(missing_ok=True)
            self.deployment.start_supernode(node, {"worker-socket": str(self.front(node))})

        start()
        self.wait(joined, f"node {node} to join")

    # --- runs ---

    def submit(self, resume: bool = False, **options: Value) -> None:
        """Starts a run, or resumes the last one; options have underscores."""
        if not resume:
            self._runs += 1
            self.run = self.folder / f"run-{self._runs}"
        given = {key.replace("_", "-"): value for key, value in options.items()}
        self.deployment.submit({"output-dir": str(self.run), **({"resume": str(self.run)} if resume else {}), **given})

    def records(self) -> list[dict[str, Any]]:
        """The rounds so far."""
        ledger = self.run / "rounds.jsonl"
        return (
            [json.loads(line) for line in ledger.read_bytes().splitlines(True) if line.endswith(b"\n")]
            if ledger.exists()
            else []
        )

    def clients(self) -> list[list[int]]:
        """Whose replies counted, by round."""
        return [[client["id"] for client in record["clients"]] for record in self.records()]

    def said(self) -> str:
        """The server's log."""
        log = self.deployment.processes.log(RUN)
        return log.read_text(errors="replace") if log.exists() else ""

    def wait(self, ready: Callable[[], bool], what: str) -> None:
        """Waits, with a limit."""
        end = time.monotonic() + LIMIT
        while not ready():
            assert time.monotonic() < end, f"waited in vain for {what}; the server said:\n{self.said()}"
            time.sleep(0.05)

    def wait_for_round(self, server_round: int) -> None:
        """Waits until this many rounds are in the ledger."""
        self.wait(lambda: len(self.records()) >= server_round, f"round {server_round}")

    def wait_for_fault(self) -> None:
        """Waits until the proxy injects its fault."""
        log = self.deployment.processes.log("double")
        self.wait(lambda: log.read_bytes().startswith(b"round "), "the fault")

    def finish(self) -> None:
        """Waits until the run ends, and checks that it has all its rounds and an adapter."""
        processes = self.deployment.processes
        self.wait(lambda: not processes.alive(RUN), "the end of the run")
        processes.stop(RUN)
        rounds = [record["server_round"] for record in self.records()]
        assert rounds == list(range(1, self.deployment.config.num_server_rounds + 1)), self.said()
        assert all(math.isfinite(record["train_loss"]) for record in self.records())
        assert (self.run / "adapter" / "adapter_config.json").is_file(), self.said()

    def outcome(self) -> Outcome:
        """The outcome of the last run."""
        records = self.records()
        for record in records:
            del record["seconds"]
        adapter = {path.name: path.read_bytes() for path in sorted((self.run / "adapter").iterdir())}
        run_id = json.loads((self.run / "environment.json").read_text())["run_id"]
        kept = sorted((self.folder / "state").glob(f"*/{run_id}/*/*"))
        return adapter, records, [path.read_bytes() for path in kept]

    def undisturbed(self, **options: Value) -> Outcome:
        """The outcome of a run with these options and no faults; it runs on first use."""
        key = json.dumps(options, sort_keys=True)
        if key not in self._undisturbed:
            self.submit(**options)
            self.finish()
            self._undisturbed[key] = self.outcome()
        return self._undisturbed[key]

    def refused(self, server_round: int) -> dict[str, str]:
        """Whose replies did not count in a round, and why."""
        refused: dict[str, str] = self.records()[server_round - 1]["refused"]
        return refused


@contextmanager
def subject(folder: Path, **config: Any) -> Iterator[Subject]:
    """Three nodes with a tiny model and random data, all up."""
    with local_deployment(tiny_config(folder, **config), folder / "state") as deployment:
        made = Subject(deployment, folder)
        deployment.start_superlink()
        for node in range(NODES):
            deployment.start_worker(node)
            deployment.register(node)
        for node in range(NODES):
            made.wait(deployment.socket(node).exists, f"worker {node}")
        made.start_double()
        for node in range(NODES):
            made.start_node(node)
        yield made


def tiny_config(folder: Path, **config: Any) -> RunConfig:
    """The configuration of six quick rounds; `config` overrides options."""
    folder.mkdir(parents=True, exist_ok=True)
    usual = {
        "data": str(save_data(folder / "data.csv", 60)),
        "model": str(save_model(folder / "model")),
        "partitioner": "iid",
        "num_clients": NODES,
        "num_server_rounds": 6,
        "local_epochs": 1,
        "r": 4,
        "rank_budget": 1,
        "dtype": "float32",
    }
    return make_config({}, {**usual, **config})


# --- the faults --------------------------------------------------------------------------------------------------------


def tampered_replies(subject: Subject) -> None:
    """Garbage, NaN, a replayed and an oversized reply: each is refused, and the round continues without it."""
    subject.start_double("2=garbage", "3=nan", "4=replay", "5=oversized")
    subject.submit(min_train_nodes=2)
    subject.finish()
    assert subject.clients() == [[0, 1, 2], [0, 2], [0, 2], [0, 2], [0, 2], [0, 1, 2]], subject.said()
    reasons = [subject.refused(number)[str(BAD)] for number in (2, 3, 4, 5)]
    for reason, expected in zip(reasons, ("starts with", "not finite", "for round 1", "at most"), strict=True):
        assert expected in reason, reasons


def late_reply(subject: Subject) -> None:
    """A reply after the round's timeout: the round continues without it, and the node takes part again later."""
    subject.start_double("2=late:14")
    subject.submit(min_train_nodes=2, round_timeout=8.0)
    subject.finish()
    assert subject.clients()[0] == [0, 1, 2]
    assert subject.clients()[1] == [0, 2]
    assert "No answer within 8 s" in subject.refused(2)[str(BAD)]
    assert subject.clients()[-1] == [0, 1, 2], subject.said()


def killed_mid_round(subject: Subject) -> None:
    """A SuperNode is killed while it trains: the round and the run continue without it."""
    subject.start_double("2=late:600")
    subject.submit(min_train_nodes=2, round_timeout=8.0)
    subject.wait_for_fault()
    subject.deployment.processes.kill(supernode(BAD))
    subject.finish()
    assert subject.clients() == [[0, 1, 2]] + 5 * [[0, 2]]
    assert "No answer within 8 s" in subject.refused(2)[str(BAD)]
    subject.start_double()
    subject.start_node(BAD)


def killed_mid_run(subject: Subject) -> None:
    """A SuperNode that the run needs is killed: the run waits and says so, and continues when the node is back."""
    subject.submit(min_train_nodes=3)
    subject.wait_for_round(2)
    subject.deployment.processes.kill(supernode(BAD))
    subject.wait(lambda: "2 usable replies; expected 3" in subject.said(), "the server to miss the node")
    subject.start_node(BAD)
    subject.finish()
    assert subject.clients() == 6 * [[0, 1, 2]]


def joining_late(subject: Subject) -> None:
    """A node is offline at the start: the run begins with enough others, and admits it when it comes."""
    subject.deployment.processes.stop(supernode(BAD))
    subject.submit(min_train_nodes=2, start_timeout=3.0)
    subject.wait_for_round(1)
    subject.start_node(BAD)
    subject.finish()
    assert subject.clients()[0] == [0, 2]
    assert subject.clients()[-1] == [0, 1, 2], subject.said()


def too_few(subject: Subject) -> None:
    """Fewer nodes than the run demands: it waits and says so, and goes on when they are there."""
    subject.submit(min_train_nodes=3)
    subject.wait_for_round(2)
    subject.deployment.processes.stop(supernode(BAD))
    subject.wait(lambda: "Waiting for nodes: 2 of 3 are online" in subject.said(), "the server to say that it waits")
    subject.start_node(BAD)
    subject.finish()
    assert subject.clients() == [[0, 1, 2]] * 6


def superlink_killed(subject: Subject) -> None:
    """The SuperLink is killed and restarted: nodes reconnect, and the run continues with its cohorts and alternation."""
    _kill_superlink(subject, fraction_train=0.67)


def superlink_killed_with_state(subject: Subject) -> None:
    """The same with a method whose clients keep private factors from round to round."""
    _kill_superlink(subject, method="fedsa-lora", rank_budget="4")


def _kill_superlink(subject: Subject, **options: Value) -> None:
    undisturbed = subject.undisturbed(**options)
    subject.submit(**options)
    subject.wait_for_round(3)
    subject.deployment.processes.kill(SUPERLINK)
    subject.deployment.processes.stop(RUN)
    assert len(subject.records()) < 6, "it was killed too late"
    subject.deployment.start_superlink()
    subject.submit(resume=True, **options)
    subject.finish()
    assert subject.outcome() == undisturbed


FAULTS: tuple[Callable[[Subject], None], ...] = (
    tampered_replies,
    late_reply,
    killed_mid_round,
    killed_mid_run,
    joining_late,
    too_few,
    superlink_killed,
    superlink_killed_with_state,
)
