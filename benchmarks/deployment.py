"""What a deployment costs beyond local training, on this machine: real processes on the loopback.

    .venv/bin/python benchmarks/deployment.py                   # every figure, about a quarter of an hour on two cores
    .venv/bin/python benchmarks/deployment.py --only overhead

- overhead: median seconds between two rounds' lines in the ledger, less the slowest node's stated training time; without the
  first round and evaluation. Also memory by kind of process, with shared pages divided among them.
- network: bytes of the requests with which a SuperNode sends its replies, headers included, counted by a proxy between it and
  the SuperLink, ÷ the codec's bytes. Other requests are reported separately.
- identical: whether the deployment's adapter equals that of `lora-a2 run`.
- nodes: 200 SuperNodes in Flower's simulation engine; memory of all processes together, shared pages counted once.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from listening_proxy import ListeningProxy
from lora_a2.config.run import RunConfig, make_config
from lora_a2.federation.observer import Observer
from lora_a2.flower.app_folder import write_app
from lora_a2.flower.deployment import RUN
from lora_a2.flower.local import LocalDeployment, local_deployment, run_values
from lora_a2.flower.processes import Processes
from lora_a2.runs.jobs import launch
from lora_a2.system.signals import interruptible

NODES, MANY = 3, 200
UPLOADING = ("push-messages", "push-object")
"""The requests with which a SuperNode sends a reply."""
ROLES = {
    "worker": "lora-a2 node",
    "supernode": "lora_a2.flower.supernode",
    "superexec": "lora_a2.flower.superexec",
    "superlink": "flower-superlink",
    "serverapp": "flwr-serverapp",
}
"""Kind of process → a part of its command line."""
Figures = dict[str, float]


def config_of(**options: Any) -> RunConfig:
    """MiniLM on a part of the built-in data set: the figures do not depend on how long nodes train."""
    usual = {
        "max_examples": 150,
        "num_clients": NODES,
        "partitioner": "iid",
        "dtype": "float32",
        "clients_per_pass": 1,
        "num_workers": 1,
    }
    return make_config({}, {**usual, **options})


@contextmanager
def deployment_of(config: RunConfig, folder: Path) -> Iterator[LocalDeployment]:
    """A deployment with all its nodes up."""
    with local_deployment(config, folder / "state") as deployment:
        deployment.start_all(print)
        yield deployment


def lines(ledger: Path) -> list[dict[str, Any]]:
    """The rounds in a ledger so far."""
    whole = [line for line in ledger.read_bytes().splitlines(True) if line.endswith(b"\n")] if ledger.exists() else []
    return [json.loads(line) for line in whole]


def watch(
    deployment: LocalDeployment, run: Path, on_round: Callable[[int], None] = lambda number: None, **options: Any
) -> list[tuple[float, dict[str, Any]]]:
    """Runs to the end; returns each round's record with the time it appeared in the ledger. Calls `on_round` for each."""
    deployment.submit({"output-dir": str(run), **{key.replace("_", "-"): value for key, value in options.items()}})
    seen: list[tuple[float, dict[str, Any]]] = []
    while deployment.processes.alive(RUN):
        now = time.monotonic()
        for record in lines(run / "rounds.jsonl")[len(seen) :]:
            seen.append((now, record))
            on_round(record["server_round"])
        deployment.processes.check()
        time.sleep(0.02)
    deployment.processes.stop(RUN)
    if not (run / "adapter" / "adapter_config.json").exists():
        raise SystemExit(f"The run failed: see {deployment.processes.log(RUN).read_text()[-2000:]}")
    return seen


def overhead(folder: Path) -> Figures:
    """Seconds of a round beyond training, and the memory of each kind of process in the last round."""
    config = config_of(num_server_rounds=12, local_epochs=1, eval_every=12)
    memory: Figures = {}
    with deployment_of(config, folder) as deployment:

        def measure(server_round: int) -> None:
            if server_round == 11:
                memory.update(_memory_by_role(deployment.processes))

        seen = watch(deployment, folder / "run", measure, min_train_nodes=NODES)
    pairs = itertools.pairwise(seen[:-1])  # the last round is evaluated
    spent = [after - before - record["seconds"]["train"] for (before, _), (after, record) in pairs]
    return {"overhead_seconds": statistics.median(spent), "overhead_worst_seconds": max(spent), **memory}


def network(folder: Path) -> Figures:
    """Bytes that a SuperNode sends ÷ the encoded bytes of its uploads."""
    config = config_of(num_server_rounds=6, local_epochs=1, eval_every=6, num_clients=1)
    with local_deployment(config, folder / "state") as deployment:
        deployment.start_superlink()
        deployment.start_worker(0)
        deployment.register(0)
        deployment.processes.wait_until(deployment.socket(0).exists, "Starting the worker")
        with ListeningProxy(deployment.port, deployment.certificates) as proxy:
            deployment.start_node(0, port=proxy.port)
            seen = watch(deployment, folder / "run")
    uploads = sum(record["uploaded_bytes"] for _, record in seen)
    carried = sum(size for path, size in proxy.sent.items() if path.rpartition("/")[2] in UPLOADING)
    rest = sum(proxy.sent.values()) - carried
    return {
        "upload_bytes": uploads / len(seen),
        "network_ratio": carried / uploads,
        "other_requests_bytes_per_round": rest / len(seen),
    }


def identical(folder: Path) -> Figures:
    """Whether deployment and simulator give the same adapter: 1 or 0."""
    config = config_of(num_server_rounds=4, local_epochs=1)
    with deployment_of(config, folder) as deployment:
        watch(deployment, folder / "deployed", min_train_nodes=NODES)
    launch(config.model_copy(update={"output_dir": str(folder / "simulated")}), Observer())
    names = [
        path.name for path in sorted((folder / "simulated" / "adapter").iterdir()) if path.suffix == ".safetensors"
    ]
    same = all(
        (folder / "deployed" / "adapter" / name).read_bytes() == (folder / "simulated" / "adapter" / name).read_bytes()
        for name in names
    )
    return {"identical_bytes": float(same and bool(names))}


def nodes(folder: Path) -> Figures:
    """Many SuperNodes in the simulation engine: whether the run completes, and its memory growth after the second round."""
    config = config_of(
        max_examples=1500,
        num_clients=MANY,
        num_server_rounds=10,
        local_epochs=1,
        eval_every=10,
        output_dir=str(folder / "run"),
    )
    home = folder / "flower"
    home.mkdir()
    with Processes(home) as processes, interruptible():
        write_app(home / "app", run_values(config))
        federation = f"num-supernodes={MANY} client-resources-num-cpus=1"
        command = ["flwr", "run", str(home / "app"), "local", "--stream", f"--federation-config={federation}"]
        (home / "config.toml").write_text('[superlink]\ndefault = "local"\n\n[superlink.local]\naddress = ":local:"\n')
        processes.start(RUN, command, lasting=False)
        memory: list[float] = []
        while processes.alive(RUN):
            done = len(lines(folder / "run" / "rounds.jsonl"))
            if done > len(memory):
                memory.append(_memory(processes))
            time.sleep(0.2)
        rounds = len(lines(folder / "run" / "rounds.jsonl"))
    growth = memory[-2] / memory[1] - 1 if len(memory) > 3 else float("nan")
    return {"nodes_rounds": rounds, "nodes_memory_bytes": max(memory, default=0), "nodes_memory_growth": growth}


def _memory(processes: Processes) -> float:
    """Proportional set size of all processes together."""
    return sum(_pss(process) for process in processes.members())


def _memory_by_role(processes: Processes) -> Figures:
    """The memory of the largest process of each kind."""
    found: Figures = {}
    for process in processes.members():
        with contextlib.suppress(psutil.Error):
            command = " ".join(process.cmdline())
            for role, words in ROLES.items():
                if words in command:
                    name = f"memory_{role}_bytes"
                    found[name] = max(found.get(name, 0.0), _pss(process))
    return found


def _pss(process: psutil.Process) -> float:
    try:
        return float(process.memory_full_info().pss)
    except psutil.Error:  # it has ended
        return 0.0


BENCHMARKS: dict[str, Callable[[Path], Figures]] = {
    "overhead": overhead,
    "network": network,
    "identical": identical,
    "nodes": nodes,
}
GOALS = {
    "overhead_seconds": "≤ 3",
    "network_ratio": "≤ 1.05",
    "identical_bytes": "1",
    "nodes_rounds": "10",
    "nodes_memory_growth": "≤ 0.02",
}


def main() -> None:
    """Measures, prints one line for each figure, and writes them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=BENCHMARKS, action="append", help="may be repeated")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/deployment.json"))
    options = parser.parse_args()
    figures: Figures = json.loads(options.output.read_text()) if options.output.exists() else {}
    for name in options.only or BENCHMARKS:
        with tempfile.TemporaryDirectory(prefix="lora-a2-") as folder:
            found = BENCHMARKS[name](Path(folder))
        for figure, value in found.items():
            goal = f" (goal {GOALS[figure]})" if figure in GOALS else ""
            print(f"{figure} {value:.4g}{goal}", flush=True)
        figures |= found
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
