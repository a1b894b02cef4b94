"""P0: a Transformers + PEFT loop: one resident model, dynamic padding, one client at a time, PyTorch's default threads."""

from __future__ import annotations

import numpy as np

from exchange import read_workload
from peers import Answer, Job, Peer
from peers.local import PeftClassifier, train


def serve(job: Job, answer: Answer) -> None:
    """A round is one epoch of every client; the result has each client's adapter."""
    workload = read_workload(job.folder)
    model = PeftClassifier(workload)
    found: dict[str, np.ndarray] = {}

    def round_() -> None:
        for k, client in enumerate(workload.clients):
            model.load(workload.start)
            train(model, client, job.bfloat16)
            found.update({f"{k}/{name}": value for name, value in model.read().items()})

    answer(Peer(round_, lambda: found))
