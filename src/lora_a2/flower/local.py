"""A whole deployment on this machine, from a run's configuration to its run directory. Each node sees only its own share."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from lora_a2.config.opening import with_task
from lora_a2.config.run import RunConfig
from lora_a2.flower.app_folder import Value, write_app
from lora_a2.flower.deployment import RUN, Deployment, worker
from lora_a2.flower.guardian import guarded_home
from lora_a2.flower.processes import Processes
from lora_a2.flower.shares import TEST, TRAIN, share_of, write_shares
from lora_a2.runs.configured import config_of
from lora_a2.runs.directory import RunDirectory
from lora_a2.runs.jobs import fresh_directory
from lora_a2.system.invocation import program
from lora_a2.system.signals import interruptible

Say = Callable[[str], None]
"""Takes a line for the user."""

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class LocalDeployment(Deployment):
    """A deployment whose nodes each have a worker with a share of the run's data.

    Args:
        processes: starts the processes.
        config: of the run; there is one node for each client.
        state: the folder for what nodes keep from round to round.
    """

    def __init__(self, processes: Processes, config: RunConfig, state: Path) -> None:
        assert config.num_clients is not None, "the number of nodes is known"
        super().__init__(processes, config.num_clients)
        self.config, self.state = config, state
        self.shares = processes.home / "data"
        self.labels, self.notes = write_shares(config, self.shares)

    def socket(self, node: int) -> Path:
        """The socket that a node's worker listens on."""
        return self.processes.home / f"{worker(node)}.sock"

    def start_worker(self, node: int) -> None:
        """Starts the worker of a node on its own share."""
        share = share_of(self.shares, node)
        test = f"--test-data={share / TEST}" if (share / TEST).exists() else "--test-fraction=0"
        self.processes.start(
            worker(node),
            [
                "lora-a2",
                "node",
                f"--data={share / TRAIN}",
                test,
                f"--socket={self.socket(node)}",
                f"--model={self.config.model}",
                f"--store={self.state / f'node-{node}'}",
            ],
        )

    def _classes(self) -> dict[str, Value]:
        """What the server is told of the nodes' data, which it does not have."""
        return {"labels": json.dumps(self.labels)} if self.labels else {"server-data": False}

    def start_node(self, node: int, port: int | None = None) -> None:
        """Starts the SuperNode of a node that has a worker; it connects to `port` (None: the proxy's)."""
        self.start_supernode(node, {"worker-socket": str(self.socket(node))}, port=port)

    def start_all(self, say: Say) -> None:
        """Starts everything except the run, and waits until the workers listen."""
        for note in self.notes:
            say(note)
        self.start_superlink()
        say(f"SuperLink behind a proxy at {self.address}, TLS and a key for each node.")
        for node in range(self.nodes):
            self.start_worker(node)
            self.register(node)
        for node in range(self.nodes):
            self.processes.wait_until(self.socket(node).exists, f"Starting {worker(node)}")
            self.start_node(node)
        say(f"{self.nodes} SuperNodes, each with a worker and its own data file.")

    def submit(self, options: Mapping[str, Value]) -> None:
        """Starts the run; `options` are added to the run configuration."""
        app = self.processes.home / "app"
        write_app(app, {**run_values(self.config), **self._classes(), **options})
        self.start_run(app)


@contextmanager
def local_deployment(config: RunConfig, state: Path) -> Iterator[LocalDeployment]:
    """A deployment in a temporary folder, which is removed at the end."""
    with guarded_home() as home, Processes(home) as processes, interruptible():
        yield LocalDeployment(processes, config, state)


def run_values(config: RunConfig) -> dict[str, Value]:
    """A configuration as Flower takes it: options that are not given are left out, and lists are joined by commas."""
    values = config.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {key: _flat(value) for key, value in values.items()}


def _flat(value: Any) -> Value:
    return ",".join(map(str, value)) if isinstance(value, list) else value


def launch(config: RunConfig, options: Mapping[str, Value], say: Say) -> dict[str, Value]:
    """Deploys, runs a configuration from the start, and takes everything down; returns a summary.

    `options` are the server's own, such as min-train-nodes.

    Raises:
        LoraA2Error: an option is invalid, or the run failed.
        KeyboardInterrupt: Ctrl-C; its text says how to continue.
    """
    config = with_task(config)  # the server has no data that would tell
    path = (Path(config.output_dir) if config.output_dir else fresh_directory(config)).resolve()
    RunDirectory.check_free(path)
    return _run(config.model_copy(update={"output_dir": str(path)}), options, say)


def resume(run_dir: Path, options: Mapping[str, Value], say: Say) -> dict[str, Value]:
    """Deploys again and continues a run after its last finished round; otherwise as `launch`."""
    run = RunDirectory.open(run_dir.resolve())
    config = config_of(run).model_copy(update={"output_dir": str(run.path)})
    return _run(config, {**options, "resume": str(run.path)}, say)


def _run(config: RunConfig, options: Mapping[str, Value], say: Say) -> dict[str, Value]:
    run = RunDirectory(Path(str(config.output_dir)))
    try:
        with local_deployment(config, run.path.with_name(f"{run.path.name}-nodes")) as deployment:
            deployment.start_all(say)
            deployment.submit(options)
            follow(deployment, say)
    except KeyboardInterrupt:
        begun = (run.path / "config.toml").exists()
        raise KeyboardInterrupt(_interrupted(run.path) if begun else "Interrupted before the first round.") from None
    run.require_finished()
    return summary(run)


def _interrupted(path: Path) -> str:
    return f"Interrupted; continue with: {program()} flower local-deployment --resume {shlex.quote(str(path))}"


def summary(run: RunDirectory) -> dict[str, Value]:
    """A finished run's metrics, the bytes sent, the duration, and where its files are."""
    records = run.load_records()
    metrics = records[run.kept_round() - 1].metrics
    return {
        **{name: value for name, value in metrics.items() if isinstance(value, float)},
        "server_rounds": len(records),
        "uploaded_bytes": sum(record.uploaded_bytes for record in records),
        "downloaded_bytes": sum(record.downloaded_bytes for record in records),
        "seconds": round(sum(sum(record.seconds.values()) for record in records), 1),
        "adapter": str(run.result()),
        "output_dir": str(run.path),
    }


def follow(deployment: LocalDeployment, say: Say) -> None:
    """Forwards the server's log lines to `say` until the run ends.

    Raises:
        RunError: the run could not be started, or a process of the deployment ended too early.
    """
    processes = deployment.processes
    with processes.log(RUN).open("rb") as log:
        failed = False

        def ended() -> bool:
            nonlocal failed
            done = not processes.alive(RUN)
            for line in _whole_lines(log):
                failed = failed or b"ERROR" in line
                if said := server_line(line, failed):
                    say(said)
            return done

        processes.wait_until(ended, "The run", limit=math.inf)
    processes.finish(RUN)


def _whole_lines(log: BinaryIO) -> Iterator[bytes]:
    """The lines written since the last call; an unfinished line is left for the next call."""
    while line := log.readline():
        if not line.endswith(b"\n"):
            log.seek(-len(line), os.SEEK_CUR)
            return
        yield line


def server_line(line: bytes, failed: bool = False) -> str:
    """The text of a line of the streamed log, if it comes from the ServerApp or follows an error; otherwise empty."""
    text = _COLOUR.sub("", line.decode(errors="replace")).rstrip()
    level, found, said = text.partition(":")
    if found and level.strip() in ("INFO", "WARNING", "ERROR"):
        return said.strip()
    return text if failed else ""
