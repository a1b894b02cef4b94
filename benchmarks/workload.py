"""The workload: BANKING77 over 30 clients, Dirichlet 0.1, fixed by seed 0; batch 32; LoRA of rank 8 on all linear layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

import lora_a2
from exchange import Arrays, ClientData, Settings, Workload
from lora_a2.core.randomness import generator
from lora_a2.core.types import Adapter
from lora_a2.data.labelled import LabelledData
from lora_a2.engine.work import epoch_orders
from lora_a2.federation.loop import Plan
from lora_a2.federation.population import Client
from lora_a2.methods.base import Method
from lora_a2.model.catalog import model_config

CLIENTS = 30
ALPHA = 0.1
BATCH = 32
RANK = 8
LEARNING_RATE = 2e-3
NEVER = 10**6


def load_clients(data: LabelledData, model: lora_a2.Model, count: int, examples: int | None) -> tuple[Client, ...]:
    """The first `count` of the 30 clients, each with its first `examples` examples (None: all)."""
    clients = lora_a2.make_clients(data, model, num_clients=CLIENTS, alpha=ALPHA, seed=0)[:count]
    return tuple(replace(c, train=c.train.take(np.arange(len(c.train))[:examples])) for c in clients)


def plan_of(
    model: lora_a2.Model,
    clients: Sequence[Client],
    method: str | Method = "fl-lora",
    *,
    epochs: int = 1,
    budget: int = RANK,
    **options: Any,
) -> Plan:
    """A run that does not evaluate in the timed rounds; `options` as for `lora_a2.make_plan`."""
    return lora_a2.make_plan(
        model,
        clients,
        method,
        num_server_rounds=NEVER,
        eval_every=NEVER,
        local_epochs=epochs,
        batch_size=BATCH,
        learning_rate=LEARNING_RATE,
        rank_budget=budget,
        **options,
    )


def workload_of(model: lora_a2.Model, folder: str, clients: Sequence[Client], plan: Plan) -> Workload:
    """Round 1 of a one-epoch plan, for the peers: the clients' examples in the order in which ours trains on them."""
    federation, network = plan.federation, model.network
    settings = Settings(
        model=folder,
        modules=tuple(m.name for m in model.layout.modules),
        rank=federation.initial.rank,
        lora_alpha=federation.initial.lora_alpha,
        pooling=network.objective.pooling,
        pad_token_id=network.pad_token_id,
        batch_size=federation.training.batch_size,
        learning_rate=federation.training.learning_rate,
        weight_decay=federation.training.weight_decay,
        device=str(network.device),
    )
    head = {name: value.cpu().numpy() for name, value in network.objective.head.items()}
    return Workload(settings, tuple(_ordered(c, plan) for c in clients), arrays_of(federation.initial), head)


def _ordered(client: Client, plan: Plan) -> ClientData:
    rng = generator(plan.federation.seed, "train", 1, client.id)
    (order,) = epoch_orders(len(client.train), 1, rng)
    taken = client.train.take(order)
    return ClientData(taken.input_ids, taken.labels)


def arrays_of(adapter: Adapter) -> Arrays:
    """An adapter in the peers' format."""
    return {f"{x}/{name}": f.get(x) for name, f in adapter.factors.items() for x in ("A", "B")}


def random_roberta(folder: Path, tokenizer: Path) -> str:
    """A folder with a RoBERTa-base with seeded random weights and the real tokenizer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = AutoModel.from_config(model_config("roberta-base"), add_pooling_layer=False)
    module.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return str(folder)
