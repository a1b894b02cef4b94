"""P2: a round of Flower's simulation on Ray: FedAvg over PEFT's parameters, model and data cached in the actors.

Beutel et al.: "Flower: A Friendly Federated Learning Research Framework", https://arxiv.org/abs/2007.14390.

One actor for each core, with one thread (`client_resources`: num_cpus 1), so that clients train in parallel. The simulation stays up
between rounds; a round is the strategy's `start` with one round and no evaluation.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from exchange import Workload, read_workload
from peers import Answer, Job, Peer
from peers.local import PeftClassifier, train

client_app = ClientApp()


@cache
def _actor(folder: str) -> tuple[Workload, PeftClassifier]:
    """The workload and model that an actor keeps between messages."""
    torch.set_num_threads(1)
    workload = read_workload(Path(folder))
    return workload, PeftClassifier(workload)


@client_app.train()
def _train(message: Message, context: Context) -> Message:
    config = message.content["config"]
    workload, model = _actor(str(config["folder"]))
    client = workload.clients[int(context.node_config["partition-id"])]
    model.load({name: array.numpy() for name, array in message.content["arrays"].items()})
    train(model, client, bool(config["bfloat16"]))
    metrics = MetricRecord({"num-examples": len(client.labels)})
    return Message(content=RecordDict({"arrays": _record(model.read()), "metrics": metrics}), reply_to=message)


def _record(arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord(OrderedDict((name, torch.from_numpy(value)) for name, value in arrays.items()))


def serve(job: Job, answer: Answer) -> None:
    """Serves rounds from the server app. The result is the averaged adapter."""
    workload = read_workload(job.folder)
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        found: dict[str, np.ndarray] = {}

        def round_() -> None:
            everyone = len(workload.clients)
            strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=everyone, min_available_nodes=everyone)
            config = ConfigRecord({"folder": str(job.folder), "bfloat16": job.bfloat16})
            result = strategy.start(grid, _record(workload.start), num_rounds=1, train_config=config)
            found.update({name: array.numpy() for name, array in result.arrays.items()})

        answer(Peer(round_, lambda: found))

    cpus = len(os.sched_getaffinity(0))
    gpus = 1 / cpus if workload.settings.device.startswith("cuda") else 0.0
    resources = {"num_cpus": 1, "num_gpus": gpus}
    backend = {"client_resources": resources, "init_args": {"num_cpus": cpus}}
    run_simulation(server_app, client_app, len(workload.clients), backend_config=backend)
