"""Slow, obvious twins: the reference trainer and the paper's equations, written without the engine.

One client, padded batches, float32, plain autograd over the whole adapter, `torch.optim.AdamW`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lora_a2.core.types import Adapter, Factor, Factors, Mask
from lora_a2.engine.work import Labels


class ReferenceClassifier(nn.Module):
    """A backbone with W x + s·B A x written as W + s·B A, mean pooling over the attention mask, and a linear head."""

    def __init__(self, backbone: nn.Module, names: Sequence[str], pooling: str, head: dict[str, np.ndarray]) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(backbone).eval().requires_grad_(False)
        self.names = list(names)
        self.pooling = pooling
        self.head = {k: torch.tensor(v) for k, v in head.items()}

    def forward(
        self, sentences: Sequence[np.ndarray], weights: dict[str, torch.Tensor], head: dict[str, torch.Tensor] | None
    ) -> torch.Tensor:
        longest = max(len(s) for s in sentences)
        ids = torch.zeros(len(sentences), longest, dtype=torch.int64)
        pad = getattr(self.backbone.config, "pad_token_id", None) or 0
        ids.fill_(pad)
        mask = torch.zeros_like(ids)
        for i, s in enumerate(sentences):
            ids[i, : len(s)] = torch.from_numpy(s)
            mask[i, : len(s)] = 1
        changed = {}
        for name, delta in weights.items():
            layer = self.backbone.get_submodule(name)
            changed[f"{name}.weight"] = layer.weight + (delta.T if isinstance(layer, Conv1D) else delta)
        hidden = torch.func.functional_call(self.backbone, changed, (ids,), {"attention_mask": mask}).last_hidden_state
        if self.pooling == "mean":
            vectors = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        elif self.pooling == "cls":
            vectors = hidden[:, 0]
        else:
            vectors = hidden[torch.arange(len(sentences)), mask.sum(1) - 1]
        use = self.head if head is None else head
        return vectors @ use["weight"].T + use["bias"]

    def loss(
        self,
        sentences: Sequence[np.ndarray],
        weights: dict[str, torch.Tensor],
        head: dict[str, torch.Tensor] | None,
        labels: Sequence[Any],
    ) -> torch.Tensor:
        """The mean cross-entropy of a batch."""
        return nn.functional.cross_entropy(self(sentences, weights, head), torch.tensor(np.array(labels)))


class ReferenceWriter(nn.Module):
    """A causal language model of Transformers as it is, on padded batches with its own loss; used as `ReferenceClassifier` is."""

    def __init__(self, whole: PreTrainedModel) -> None:
        super().__init__()
        self.whole = copy.deepcopy(whole).eval().requires_grad_(False)

    @property
    def backbone(self) -> nn.Module:
        """The part of it that adapters are for."""
        return self.whole.base_model

    def get_parameter(self, target: str) -> nn.Parameter:
        """As of a module that has the backbone under this name."""
        return self.backbone.get_parameter(target.removeprefix("backbone."))

    def loss(
        self,
        sentences: Sequence[np.ndarray],
        weights: dict[str, torch.Tensor],
        head: None,
        labels: Sequence[np.ndarray],
    ) -> torch.Tensor:
        """The mean cross-entropy of a batch's learnt tokens."""
        longest = max(len(s) for s in sentences)
        ids = torch.zeros(len(sentences), longest, dtype=torch.int64)
        mask, targets = torch.zeros_like(ids), torch.full_like(ids, -100)
        for i, (s, own) in enumerate(zip(sentences, labels, strict=True)):
            ids[i, : len(s)], mask[i, : len(s)] = torch.from_numpy(s), 1
            targets[i, : len(s)] = torch.from_numpy(own)
        changed = {}
        for name, delta in weights.items():
            layer = self.backbone.get_submodule(name)
            key = f"{self.whole.base_model_prefix}.{name}.weight"
            changed[key] = layer.weight + (delta.T if isinstance(layer, Conv1D) else delta)
        if self.whole.config.tie_word_embeddings:
            changed["lm_head.weight"] = self.backbone.get_input_embeddings().weight  # where a test has put another
        inputs = {"input_ids": ids, "attention_mask": mask, "labels": targets, "use_cache": False}
        found: torch.Tensor = torch.func.functional_call(self.whole, changed, (), inputs).loss
        return found


def train_reference(
    model: ReferenceClassifier | ReferenceWriter,
    start: Adapter,
    sentences: Sequence[np.ndarray],
    labels: Labels,
    orders: Sequence[np.ndarray],
    trainable: frozenset[Factor],
    mask: Mask | None,
    *,
    batch_size: int,
    learning_rate: float,
    ratio: float,
    weight_decay: float,
    base: dict[str, np.ndarray] | None = None,
    penalty: Callable[[dict[tuple[str, str], torch.Tensor]], torch.Tensor] | None = None,
    select: Callable[[Adapter], Mask] | None = None,
    clipping_norm: float | None = None,
    max_grad_norm: float | None = None,
    max_steps: int | None = None,
) -> Adapter:
    """Trains one client; after every step unselected slices are put back, which is what the paper's mask means.

    `base` is added to the frozen weights of its modules; `penalty` maps (module, factor) → tensor to a term of the loss.
    `select` finds the mask after the first order; until then all slices are trained. `clipping_norm`, L1, and
    `max_grad_norm`, L2, are of what `mask` selects. Training ends after `max_steps` steps.
    """
    moved = {n: torch.tensor(v) for n, v in (base or {}).items()}
    origin = {(n, f): torch.tensor(start.factors[n].get(f)) for n in start.factors for f in start.kinds}
    values = {key: v.clone().requires_grad_(key[1] in trainable) for key, v in origin.items()}
    head = {n: torch.tensor(v).requires_grad_() for n, v in start.head.items()}
    groups = [
        {"params": [v for (_, f), v in values.items() if f in {"A", "R"} & trainable], "lr": learning_rate},
        {"params": [v for (_, f), v in values.items() if f == "B" and f in trainable], "lr": learning_rate * ratio},
        {"params": list(head.values()), "lr": learning_rate},
    ]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=weight_decay)
    steps = 0
    for epoch, order in enumerate(orders):
        if epoch == 1 and select is not None:
            mask = select(_adapter(start, values, head))
            _put_back(values, origin, mask)
        for i in range(0, len(order), batch_size):
            if steps == max_steps:
                break
            steps += 1
            rows = order[i : i + batch_size]
            weights = {n: start.scaling * product(values, n) for n in start.factors}
            weights = {n: w + moved[n] if n in moved else w for n, w in weights.items()}
            loss = model.loss([sentences[j] for j in rows], weights, head or None, [labels[j] for j in rows])
            if penalty is not None:
                loss = loss + penalty(values)
            optimizer.zero_grad()
            loss.backward()
            if clipping_norm is not None:
                gradients = _masked(values, head, mask)
                total = sum(float(v.grad.abs().sum()) for v in gradients)
                for value in gradients:
                    value.grad *= min(1.0, clipping_norm / total)
            if max_grad_norm is not None:
                nn.utils.clip_grad_norm_(_masked(values, head, mask), max_grad_norm)
            optimizer.step()
            if mask is not None:
                _put_back(values, origin, mask)
    if len(orders) == 1 and select is not None:
        _put_back(values, origin, select(_adapter(start, values, head)))
    return _adapter(start, values, head)


Values = dict[tuple[str, str], torch.Tensor]


def product(values: Values, name: str) -> torch.Tensor:
    """B @ A, or B @ R @ A."""
    left = values[name, "B"] @ values[name, "R"] if (name, "R") in values else values[name, "B"]
    return left @ values[name, "A"]


def _masked(values: Values, head: dict[str, torch.Tensor], mask: Mask | None) -> list[Any]:
    """What has a gradient, those of slices outside the mask put to zero."""
    for (name, factor), value in values.items():
        if mask is not None and value.grad is not None:
            keep = torch.from_numpy(mask[name])
            value.grad *= keep[:, None] if factor == "A" else keep[None, :]
    return [v for v in (*values.values(), *head.values()) if v.grad is not None]


def _put_back(values: Values, origin: Values, mask: Mask) -> None:
    with torch.no_grad():
        for (name, factor), value in values.items():
            keep = torch.from_numpy(mask[name])
            keep = keep[:, None] if factor == "A" else keep[None, :]
            value.copy_(torch.where(keep, value, origin[name, factor]))


def _adapter(start: Adapter, values: Values, head: dict[str, torch.Tensor]) -> Adapter:
    new = {key: v.detach().numpy().copy() for key, v in values.items()}
    factors = {n: Factors(A=new[n, "A"], B=new[n, "B"], R=new.get((n, "R"))) for n in start.factors}
    return Adapter(factors, start.lora_alpha, {n: v.detach().numpy().copy() for n, v in head.items()})


def descend_reference(
    model: ReferenceClassifier | ReferenceWriter,
    start: Adapter,
    sentences: Sequence[np.ndarray],
    labels: Labels,
    batches: Sequence[np.ndarray],
    trainable: frozenset[Factor],
    rates: dict[str, float],
    base: dict[str, np.ndarray] | None = None,
) -> Adapter:
    """θ − η · mean(g) / (√mean(g²) + 1e-8) over the batches' gradients g at the start; `rates` is η by factor."""
    factors = {n: {x: f.get(x).copy() for x in ("A", "B")} for n, f in start.factors.items()}
    for name in start.factors:
        for factor in sorted(trainable):
            gradients = []
            for rows in batches:
                value = torch.tensor(start.factors[name].get(factor), requires_grad=True)
                weights = {}
                for n, f in start.factors.items():
                    a, b = torch.tensor(f.A), torch.tensor(f.B)
                    if n == name:
                        a, b = (value, b) if factor == "A" else (a, value)
                    weights[n] = start.scaling * b @ a + torch.tensor((base or {}).get(n, np.float32(0)))
                loss = model.loss([sentences[j] for j in rows], weights, None, [labels[j] for j in rows])
                gradients.append(torch.autograd.grad(loss, value)[0].numpy())
            g = np.array(gradients, np.float64)
            step = g.mean(0) / (np.sqrt((g**2).mean(0)) + 1e-8)
            factors[name][factor] = (start.factors[name].get(factor) - rates[factor] * step).astype(np.float32)
    return Adapter({n: Factors(A=f["A"], B=f["B"]) for n, f in factors.items()}, start.lora_alpha)
