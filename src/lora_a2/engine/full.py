"""Local training of every weight of the backbone: the path of full fine-tuning, beside the LoRA engine.

One client after the other. Weights are float32 masters; each step casts them to the compute dtype.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from lora_a2.core.types import Adapter, BaseDelta, FloatArray, weight_name
from lora_a2.engine.lora import LoraLinear
from lora_a2.engine.network import Network
from lora_a2.engine.transfer import to_device
from lora_a2.engine.work import ClientTask, TokenizedExamples, TrainingSettings, pieces


def weight_shapes(network: Network) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Names and shapes of the backbone's weights, target modules as (d_out, d_in)."""
    with plain_layers(network):
        return tuple((name, tuple(p.shape)) for name, p in network.backbone.named_parameters())


@contextmanager
def plain_layers(network: Network) -> Iterator[None]:
    """Linear layers in the places of the LoRA layers, on the same weights, for as long as this is entered."""
    for name, layer in network.layers.items():
        linear = nn.Linear(layer.d_in, layer.d_out, bias=layer.bias is not None, device="meta")
        assert layer.base is not None, "a method that trains it is refused weights of 4 bits"
        linear.weight = layer.base
        if layer.bias is not None:
            linear.bias = layer.bias
        _put(network, name, linear)
    try:
        yield
    finally:
        for name, layer in network.layers.items():
            _put(network, name, layer)


def _put(network: Network, name: str, layer: nn.Module | LoraLinear) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.backbone.get_submodule(parent), child, layer)


def train_full(
    network: Network, task: ClientTask, base: BaseDelta, settings: TrainingSettings
) -> tuple[dict[str, FloatArray], dict[str, FloatArray], float]:
    """Trains all weights from pre-trained + `base`, with AdamW at η_A, and a trained head with them.

    `task.start` holds the head; its factors are not used.

    Returns:
        The weights' changes by name, the head's new values, and the mean loss over the epochs.
    """
    network.set_base({})
    with plain_layers(network), network.recomputing(settings.gradient_checkpointing):
        parameters = dict(network.backbone.named_parameters())
        start = {name: _moved(p, base.get(name)) for name, p in parameters.items()}
        weights = {name: value.clone().requires_grad_() for name, value in start.items()}
        device = network.device
        head = {name: torch.tensor(v, device=device).requires_grad_() for name, v in task.start.head.items()}
        optimizer = torch.optim.AdamW(
            [*weights.values(), *head.values()], lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        loss_sum, seen = torch.zeros((), dtype=torch.float64, device=device), 0.0
        for order in task.orders:
            for rows in pieces(order, settings.step_examples):
                total = float(network.objective.weights(task.examples.labels_at(rows)).sum())
                optimizer.zero_grad()
                for part in pieces(rows, settings.batch_size):
                    settings.between_steps()
                    loss = _loss(network, weights, head, task, part)
                    (loss.sum() / total).backward()  # type: ignore[no-untyped-call]
                    loss_sum += loss.detach().double().sum()
                if settings.max_grad_norm is not None:
                    nn.utils.clip_grad_norm_([*weights.values(), *head.values()], settings.max_grad_norm)
                optimizer.step()
                seen += total
    changes = {name: (value.detach() - start[name]).cpu().numpy() for name, value in weights.items()}
    return (
        changes,
        {name: value.detach().cpu().numpy() for name, value in head.items()},
        float(loss_sum) / max(seen, 1.0),
    )


def weight_gradients(
    network: Network, adapter: Adapter, examples: TokenizedExamples, settings: TrainingSettings
) -> tuple[dict[str, FloatArray], float]:
    """The gradient of the mean loss by the weights of the target layers, at the loaded base, and that loss.

    `adapter` gives a trained head; its factors are not looked at.

    Returns:
        Name of a weight → (d_out, d_in) float32; the mean loss.
    """
    task = ClientTask(adapter, examples, None, (np.arange(len(examples)),))
    device = network.device
    with plain_layers(network), network.recomputing(settings.gradient_checkpointing):
        every = dict(network.backbone.named_parameters())
        names = {weight_name(name) for name in network.layers}
        weights = {n: _moved(p, network.base.get(n)).requires_grad_(n in names) for n, p in every.items()}
        head = {name: torch.tensor(v, device=device) for name, v in adapter.head.items()}
        total = torch.zeros((), dtype=torch.float64, device=device)
        seen = float(network.objective.weights(examples.labels).sum())
        for rows in pieces(np.arange(len(examples)), settings.batch_size):
            loss = _loss(network, weights, head, task, rows)
            (loss.sum() / seen).backward()  # type: ignore[no-untyped-call]
            total += loss.detach().double().sum()
    gradients = {
        n: np.zeros(w.shape, np.float32) if w.grad is None else w.grad.cpu().numpy()
        for n, w in weights.items()
        if n in names
    }
    return gradients, float(total) / seen


def _moved(parameter: Tensor, change: FloatArray | None) -> Tensor:
    origin = parameter.detach().float().clone()
    return origin if change is None else origin + to_device(change, origin.device)


def _loss(
    network: Network,
    weights: Mapping[str, Tensor],
    head: Mapping[str, Tensor],
    task: ClientTask,
    rows: np.ndarray,
) -> Tensor:
    """The losses (n,) of a batch."""
    batch = network.pack([[task.examples.input_ids[i] for i in rows]])
    cast = {name: value.to(network.dtype) for name, value in weights.items()}
    hidden = network.hidden_with(cast, batch)
    client = torch.zeros(len(rows), dtype=torch.int64, device=network.device)
    own = {name: value[None] for name, value in head.items()}
    return network.objective.losses(hidden, batch, task.examples.labels_at(rows), client, own, cast)
