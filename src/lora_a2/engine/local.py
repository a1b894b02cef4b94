"""Local training of a cohort: K clients in one forward and backward, each with its own adapter and AdamW.

Shapes: K clients, P trained values of the client that trains most, A (K, R, d_in), B (K, d_out, R) a module.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from lora_a2.core.types import Factor, FloatArray, Mask
from lora_a2.engine.adamw import AdamW
from lora_a2.engine.network import Network
from lora_a2.engine.packing import PackedBatch
from lora_a2.engine.parameters import CohortParameters
from lora_a2.engine.penalty import add_gradients
from lora_a2.engine.prefix import Prefix
from lora_a2.engine.transfer import to_device
from lora_a2.engine.work import ClientTask, Trained, TrainingSettings, joined, pieces
from lora_a2.errors import ModelError


def train_cohort(
    network: Network, tasks: Sequence[ClientTask], trainable: frozenset[Factor], settings: TrainingSettings
) -> list[Trained]:
    """Trains every task's adapter through all its epochs; the results come in the order of the tasks."""
    return CohortTraining(network, tasks, trainable, settings).run()


class CohortTraining:
    """K clients in training, epoch by epoch.

    The loss is the sum of the clients' means, so that no client feels another's batch; a client that has no batch left for a step
    sits it out. Unselected rank slices are not parameters at all, so nothing moves them. Where one
    factor is trained and all start from one adapter, that start is merged into the frozen weights and only the
    trained slices' change is computed beside them. What lies below the lowest trained module is computed once.

    Raises:
        ModelError: several clients, with a model that can only train one at a time.
    """

    def __init__(
        self,
        network: Network,
        tasks: Sequence[ClientTask],
        trainable: frozenset[Factor],
        settings: TrainingSettings,
    ) -> None:
        if network.alone and len(tasks) > 1:
            raise ModelError(f"{len(tasks)} clients in one pass: this model can only train one at a time.")
        self._network, self._trainable, self._settings = network, trainable, settings
        self._order = sorted(range(len(tasks)), key=lambda k: self._extent(tasks[k]), reverse=True)
        self._begin([tasks[k] for k in self._order])
        self._epochs_done = 0
        self._losses = torch.zeros(len(tasks), dtype=torch.float64, device=network.device)
        self._seen = np.zeros(len(tasks))

    def _extent(self, task: ClientTask) -> tuple[int, int]:
        """Steps and examples of a client: those with the most come first, so that the rows that are computed are few."""
        size = self._settings.step_examples
        return sum(-(-len(order) // size) for order in task.orders), sum(map(len, task.orders))

    def _begin(self, cohort: Sequence[ClientTask]) -> None:
        self._cohort = cohort
        self._merged = len(self._trainable) == 1 and all(t.start is cohort[0].start for t in cohort)
        self._parameters = CohortParameters(cohort, self._trainable, self._merged, self._network)
        self._start = self._parameters.values.clone() if self._settings.penalties else self._parameters.values
        self._rates = self._parameters.rates(self._settings)
        self._optimizer = AdamW(self._parameters.values, self._rates, self._settings.weight_decay)

    def run(self, epochs: int | None = None) -> list[Trained]:
        """Trains that many epochs more (None: all that are left); where every client stands then."""
        end = None if epochs is None else self._epochs_done + epochs
        for clients, gradient in self._gradients(self._epochs_done, end):
            self._optimizer.step(gradient, clients)
        self._epochs_done = max(len(t.orders) for t in self._cohort) if end is None else end
        return self._results()

    def narrow(self, masks: Sequence[Mask]) -> None:
        """Goes on with the masks' rank slices alone, a mask for each client, in the order of the tasks.

        These keep their values and their AdamW state, as if nothing had happened; the others are back at the start.
        """
        before, optimizer = self._parameters, self._optimizer
        self._begin([replace(t, mask=masks[k]) for t, k in zip(self._cohort, self._order, strict=True)])
        pairs = (
            (before.values, self._parameters.values),
            (optimizer.mean, self._optimizer.mean),
            (optimizer.square, self._optimizer.square),
        )
        for source, target in pairs:
            self._parameters.take_over(before, source, target)
        self._optimizer.count_from(optimizer)

    def descend(self, batches: int) -> list[Trained]:
        """Every client one step away from the start, by its gradients there of its first batches, this many or all it has.

        The step is AdamW's, η · m / √v, with the plain means of the gradients and of their squares for the moments.
        """
        values = self._parameters.values
        total, squares = torch.zeros_like(values), torch.zeros_like(values)
        counts = np.zeros(len(self._cohort), np.float32)
        for clients, gradient in islice(self._gradients(0, 1), batches):
            total[: len(gradient)] += gradient
            squares[: len(gradient)] += gradient.square()
            counts[clients] += 1
        number = to_device(counts, values.device)[:, None]
        root = (squares / number).sqrt_().add_(1e-8)
        values.sub_((total / number).div_(root).mul_(to_device(self._rates, values.device)))
        return self._results()

    def _gradients(self, first: int, end: int | None) -> Iterator[tuple[list[int], Tensor]]:
        """For each step of the epochs `first` … `end` − 1: the clients that make it, and the gradient (K', P) of the first K', at the
        values of that moment; zero for those of them that sit it out."""
        cohort, parameters, network = self._cohort, self._parameters, self._network
        network.load(cohort[0].start if self._merged else None)
        size = self._settings.step_examples
        schedule = [[rows for order in t.orders[first:end] for rows in pieces(order, size)] for t in cohort]
        prefix = network.prefix(parameters.modules, [t.examples.input_ids for t in cohort])
        for step in range(max(map(len, schedule))):
            clients = [k for k, batches in enumerate(schedule) if len(batches) > step]
            active = clients[-1] + 1
            batches = [own[step] if len(own) > step else _NOTHING for own in schedule[:active]]
            totals = np.array(
                [
                    network.objective.weights(t.examples.labels_at(b)).sum()
                    for t, b in zip(cohort[:active], batches, strict=True)
                ]
            )
            gradient, loss = self._accumulated(prefix, batches, totals)
            if self._settings.penalties:
                add_gradients(gradient, parameters, self._start, self._settings.penalties, active)
            _clip(gradient, self._rates[:active] != 0, self._settings)
            self._losses[:active] += loss
            self._seen[:active] += totals
            if idle := sorted(set(range(active)) - set(clients)):
                gradient[idle] = 0  # penalties pull at everyone
            yield clients, gradient

    def _accumulated(
        self, prefix: Prefix | None, batches: Sequence[np.ndarray], totals: FloatArray
    ) -> tuple[Tensor, Tensor]:
        """As `_step`, for examples that are more than a batch, one batch of them after the other."""
        size = self._settings.batch_size
        passes = -(-max(map(len, batches)) // size)
        gradients = torch.zeros_like(self._parameters.values[: len(batches)]) if passes > 1 else None
        losses = torch.zeros(len(batches), dtype=torch.float64, device=self._network.device)
        for i in range(passes):
            self._settings.between_steps()
            parts = [own[i * size : (i + 1) * size] for own in batches]
            active = max(k for k, own in enumerate(parts) if len(own)) + 1
            with self._network.recomputing(self._settings.gradient_checkpointing):
                gradient, loss = _step(
                    self._network, self._parameters, prefix, self._cohort[:active], parts[:active], totals[:active]
                )
            if gradients is None:
                return gradient, loss
            gradients[:active] += gradient
            losses[:active] += loss
        assert gradients is not None
        return gradients, losses

    def _results(self) -> list[Trained]:
        means = self._losses.cpu().numpy() / np.maximum(self._seen, 1)
        results = [Trained(self._parameters.adapter(i), float(mean)) for i, mean in enumerate(means)]
        return [results[self._order.index(k)] for k in range(len(results))]


_NOTHING = np.zeros(0, np.int64)


def _clip(gradient: Tensor, trained: np.ndarray, settings: TrainingSettings) -> None:
    """Scales each client's row of `gradient` (K', P) down to the norms of the settings, counted over what is `trained` (1 or K', P)."""
    if settings.clipping_norm is None and settings.max_grad_norm is None:
        return
    counted = to_device(trained, gradient.device)
    if settings.clipping_norm is not None:
        gradient *= (settings.clipping_norm / (gradient.abs() * counted).sum(1, keepdim=True)).clamp_(max=1)
    if settings.max_grad_norm is not None:
        norms = (gradient * counted).norm(dim=1, keepdim=True)
        gradient *= (settings.max_grad_norm / (norms + 1e-6)).clamp_(max=1)  # as torch.nn.utils.clip_grad_norm_


def _step(
    network: Network,
    parameters: CohortParameters,
    prefix: Prefix | None,
    cohort: Sequence[ClientTask],
    batches: Sequence[np.ndarray],
    totals: FloatArray,
) -> tuple[Tensor, Tensor]:
    """One forward and backward: gradient (K, P) float32, and each client's summed loss (K,).

    `totals` (K,) are the weights of the examples by which each client's loss is divided; a client without examples has no loss.
    """
    sentences = [[t.examples.input_ids[i] for i in b] for t, b in zip(cohort, batches, strict=True)]
    batch = network.pack(sentences)
    entry = None
    if prefix is not None:
        assert isinstance(batch, PackedBatch), "padded batches have no prefix"
        entry = prefix.block, prefix.rows(batches, [[len(s) for s in client] for client in sentences], batch)
    sizes = [len(b) for b in batches]
    client = to_device(np.repeat(np.arange(len(cohort)), sizes), network.device)[batch.sentences]
    labels = joined([t.examples.labels_at(b) for t, b in zip(cohort, batches, strict=True)])
    slots, head = parameters.leaves(len(cohort))
    with network.slots(slots):
        hidden = network.hidden(batch, entry)
        losses = network.objective.losses(hidden, batch, labels, client, head, {})
        weights = to_device((1.0 / np.maximum(totals, 1)).astype(np.float32), network.device)[client]
        torch.autograd.backward((losses * weights).sum())
    sums = torch.zeros(len(cohort), dtype=torch.float64, device=network.device)
    return parameters.collected(len(cohort), head), sums.index_add_(0, client, losses.detach().double())
