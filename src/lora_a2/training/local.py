"""Local training of a cohort: K clients in one forward and backward, each with its own adapter and AdamW.

Shapes: K clients, P trained values of the client that trains most, A (K, R, d_in), B (K, d_out, R) a module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lora_a2.method import TailPenalty
from lora_a2.model.classifier import Classifier
from lora_a2.model.prefix import Prefix
from lora_a2.training.adamw import AdamW
from lora_a2.training.parameters import CohortParameters
from lora_a2.training.penalty import tail_gradient
from lora_a2.types import Adapter, Factor, Mask


@dataclass(frozen=True)
class TokenizedExamples:
    """A client's examples: token ids (length,) int64 each, labels (n,) int64."""

    input_ids: tuple[np.ndarray, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.input_ids)

    def take(self, rows: np.ndarray) -> TokenizedExamples:
        """The examples at `rows` (m,), in that order."""
        return TokenizedExamples(tuple(self.input_ids[i] for i in rows), self.labels[rows])


@dataclass(frozen=True)
class TrainingSettings:
    """Hyperparameters of local training.

    η_A = `learning_rate`, η_B = `learning_rate_ratio` · η_A; a trained head takes η_A. `penalty` is added to the loss, and
    not counted in the losses reported.
    """

    batch_size: int
    learning_rate: float
    learning_rate_ratio: float
    weight_decay: float = 0.01
    penalty: TailPenalty | None = None


@dataclass(frozen=True)
class Task:
    """One client's part in a cohort: its start, its examples, and the order in which its epochs go through them.

    `mask` None trains every rank slice of the trained factors.
    """

    start: Adapter
    examples: TokenizedExamples
    mask: Mask | None
    orders: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Trained:
    """A client's adapter after its epochs, and the mean loss of its examples over them."""

    adapter: Adapter
    train_loss: float


def epoch_orders(examples: int, epochs: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """A permutation of the examples for each epoch."""
    return tuple(rng.permutation(examples) for _ in range(epochs))


def train_cohort(
    classifier: Classifier, tasks: Sequence[Task], trainable: frozenset[Factor], settings: TrainingSettings
) -> list[Trained]:
    """Trains every task's adapter; the results come in the order of the tasks.

    The loss is the sum of the clients' means, so that no client feels another's batch; a client that has gone through its epochs
    leaves. Unselected rank slices are not parameters at all, so nothing moves them. Where one
    factor is trained and all start from one adapter, that start is merged into the frozen weights and only the
    trained slices' change is computed beside them. What lies below the lowest trained module is computed once.
    """
    schedule = [list(_batches(task, settings.batch_size)) for task in tasks]
    order = sorted(range(len(tasks)), key=lambda k: -len(schedule[k]))
    cohort = [tasks[k] for k in order]
    merged = len(trainable) == 1 and all(t.start is cohort[0].start for t in cohort)
    classifier.load(cohort[0].start if merged else None)
    parameters = CohortParameters(cohort, trainable, merged, classifier)
    optimizer = AdamW(parameters.values, parameters.rates(settings), settings.weight_decay)
    prefix = classifier.prefix(parameters.modules, [t.examples.input_ids for t in cohort])
    losses = torch.zeros(len(cohort), dtype=torch.float64, device=classifier.device)
    for step in range(len(schedule[order[0]])):
        active = sum(len(schedule[k]) > step for k in order)
        batches = [schedule[k][step] for k in order[:active]]
        gradient, loss = _step(classifier, parameters, prefix, cohort[:active], batches)
        if settings.penalty is not None:
            gradient += tail_gradient(parameters, settings.penalty, active)
        optimizer.step(gradient)
        losses[:active] += loss
    seen = [sum(len(b) for b in schedule[k]) for k in order]
    means = losses.cpu().numpy() / np.maximum(seen, 1)
    results = [Trained(parameters.adapter(i), float(means[i])) for i in range(len(cohort))]
    return [results[order.index(k)] for k in range(len(tasks))]


def _batches(task: Task, batch_size: int) -> Iterator[np.ndarray]:
    for order in task.orders:
        yield from (order[i : i + batch_size] for i in range(0, len(order), batch_size))


def _step(
    classifier: Classifier,
    parameters: CohortParameters,
    prefix: Prefix | None,
    cohort: Sequence[Task],
    batches: Sequence[np.ndarray],
) -> tuple[Tensor, Tensor]:
    """One forward and backward: gradient (K, P) float32, and each client's summed loss (K,)."""
    sentences = [[t.examples.input_ids[i] for i in b] for t, b in zip(cohort, batches, strict=True)]
    batch = classifier.pack(sentences)
    entry = None
    if prefix is not None:
        entry = prefix.block, prefix.rows(batches, [[len(s) for s in client] for client in sentences], batch)
    sizes = np.array([len(b) for b in batches])
    client = torch.from_numpy(np.repeat(np.arange(len(cohort)), sizes)).to(classifier.device)[batch.sentences]
    labels = np.concatenate([t.examples.labels[b] for t, b in zip(cohort, batches, strict=True)])
    slots, head = parameters.leaves(len(cohort))
    with classifier.slots(slots):
        vectors = classifier.encode(batch, entry)
    logits = _logits(classifier, vectors, client, head)
    target = torch.from_numpy(labels).to(classifier.device)[batch.sentences]
    loss = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    weights = torch.from_numpy((1.0 / sizes).astype(np.float32)).to(classifier.device)[client]
    torch.autograd.backward((loss * weights).sum())
    sums = torch.zeros(len(cohort), dtype=torch.float64, device=classifier.device)
    return parameters.collected(len(cohort), head), sums.index_add_(0, client, loss.detach().double())


def _logits(classifier: Classifier, vectors: Tensor, client: Tensor, head: Mapping[str, Tensor]) -> Tensor:
    """Logits (N, C): by the frozen head, or each sentence by its own client's head (K, C, H), (K, C)."""
    if not head:
        return classifier.logits(vectors)
    logits = torch.einsum("nh,kch->knc", vectors, head["weight"]) + head["bias"][:, None]
    return logits[client, torch.arange(len(client), device=client.device)]
