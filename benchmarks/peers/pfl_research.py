"""P1: a round of pfl-research's simulator, federated averaging over PEFT's parameters.

Granqvist et al.: "pfl-research: simulation framework for accelerating research in Private Federated Learning", NeurIPS 2024
Datasets and Benchmarks, https://arxiv.org/abs/2404.06430.

It follows its documentation's advice on speed: one process for each core under `torchrun`, a resident model in each, users distributed
by their number of tokens (`user_id_to_weight`).
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchDataDataset
from pfl.data.sampling import MinimizeReuseUserSampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor

from exchange import Workload, read_workload
from peers import Answer, Job, Peer
from peers.local import PeftClassifier, collate, examples, optimizer_of

NEVER = 10**9


class Network(PeftClassifier):
    """The classifier with the metrics that pfl-research requires; only iteration 0 asks for them."""

    def metrics(self, *batch: Tensor) -> dict[str, Any]:
        """The loss of a batch."""
        return {"loss": Weighted.from_unweighted(float(self.loss(*batch)))}


class Simulator:
    """The simulator over all clients; a round is one central iteration."""

    def __init__(self, workload: Workload, bfloat16: bool) -> None:
        settings = workload.settings
        self.start, self.cohort = workload.start, len(workload.clients)
        self.network = Network(workload)
        self.model = PyTorchModel(
            self.network,
            partial(optimizer_of, weight_decay=settings.weight_decay),
            torch.optim.SGD(self.network.trained(), lr=1.0),
            amp_dtype=torch.bfloat16 if bfloat16 else None,
        )
        data = _federated(workload)
        self.backend = SimulatedBackend(training_data=data, val_data=data, postprocessors=[WeightByDatapoints()])
        self.algorithm: Any = FederatedAveraging()
        self.train = NNTrainHyperParams(
            local_learning_rate=settings.learning_rate, local_num_epochs=1, local_batch_size=settings.batch_size
        )
        self.iterations = 0
        self.round()  # iteration 0 is always evaluated, later ones are not

    def round(self) -> None:
        """One central iteration from the common start."""
        self.network.load(self.start)
        self.iterations += 1
        params = NNAlgorithmParams(
            central_num_iterations=self.iterations,
            evaluation_frequency=NEVER,
            train_cohort_size=self.cohort,
            val_cohort_size=None,
        )
        evaluation = NNEvalHyperParams(local_batch_size=self.train.local_batch_size)
        self.algorithm.run(params, self.backend, self.model, self.train, evaluation, send_metrics_to_platform=False)


def _federated(workload: Workload) -> FederatedDataset:
    settings = workload.settings
    together = partial(collate, pad_token_id=settings.pad_token_id, device=settings.device)
    users = [
        PyTorchDataDataset(examples(c), user_id=str(k), collate_fn=together) for k, c in enumerate(workload.clients)
    ]
    tokens = {k: sum(len(s) for s in client.sentences) for k, client in enumerate(workload.clients)}
    return FederatedDataset(users.__getitem__, MinimizeReuseUserSampler(list(tokens)), user_id_to_weight=tokens)


def serve(job: Job, answer: Answer) -> None:
    """Serves rounds from rank 0; the other processes follow it. The result is the averaged adapter."""
    asyncio.set_event_loop(asyncio.new_event_loop())
    simulator = Simulator(read_workload(job.folder), job.bfloat16)
    if not torch.distributed.is_initialized():
        answer(Peer(simulator.round, simulator.network.read))
    elif torch.distributed.get_rank() == 0:

        def together() -> None:
            _another_round(True)
            simulator.round()

        answer(Peer(together, simulator.network.read))
        _another_round(False)
    else:
        while _another_round(False):
            simulator.round()


def _another_round(wanted: bool) -> bool:
    """Whether rank 0 wants another round, sent to all."""
    told = torch.tensor([float(wanted)])
    torch.distributed.broadcast(told, src=0)
    return bool(told.item())
