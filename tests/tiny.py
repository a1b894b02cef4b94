"""Small random models of real architectures, and small random data, for tests of the engine."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModel,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedConfig,
    PreTrainedModel,
    RemBertConfig,
    RobertaConfig,
    XLNetConfig,
)

from lora_a2.core.algebra import initial_adapter
from lora_a2.core.randomness import generator
from lora_a2.core.types import Adapter, Factors, Layout
from lora_a2.engine.network import Network
from lora_a2.engine.packing import Pooling
from lora_a2.engine.targets import find_target_modules
from lora_a2.engine.work import TokenizedExamples
from lora_a2.federation.observer import Observer
from lora_a2.federation.population import Client
from lora_a2.federation.records import RoundRecord
from lora_a2.model.fingerprint import fingerprint
from lora_a2.model.pretrained import Model, random_head
from lora_a2.tasks.classification.objective import Classification

VOCABULARY = 50
WORDS = [f"w{i}" for i in range(30)]
LABELS = ("red", "green", "blue")
CONFIGS: dict[str, PreTrainedConfig] = {
    "bert": BertConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    ),
    "roberta": RobertaConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    ),
    "distilbert": DistilBertConfig(vocab_size=VOCABULARY, dim=16, n_layers=2, n_heads=2, hidden_dim=24),
    "llama": LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=24,
        max_position_embeddings=64,
        pad_token_id=0,
    ),
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_inner=24,
        n_positions=64,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "gemma2": Gemma2Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        intermediate_size=24,
        max_position_embeddings=64,
        sliding_window=4,
        attn_logit_softcapping=1.0,
        query_pre_attn_scalar=1,
    ),
    "modernbert": ModernBertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=1,
        intermediate_size=24,
        max_position_embeddings=64,
        local_attention=4,
        global_attn_every_n_layers=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
    ),
    "mpnet": MPNetConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    ),
}
_SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
PADDED: dict[str, PreTrainedConfig] = {
    "rembert": RemBertConfig(
        **_SMALL, input_embedding_size=16, output_embedding_size=16, bos_token_id=1, eos_token_id=2
    ),
    "deberta-v2": DebertaV2Config(
        **_SMALL, relative_attention=True, pos_att_type=["p2c", "c2p"], position_biased_input=False, type_vocab_size=0
    ),
    "xlnet": XLNetConfig(vocab_size=VOCABULARY, d_model=16, n_layer=2, n_head=2, d_inner=24, pad_token_id=0),
}
"""Architectures whose attention is not behind Transformers' attention interface."""
POOLING: dict[str, Pooling] = {
    "bert": "mean",
    "roberta": "cls",
    "distilbert": "mean",
    "llama": "last",
    "gpt2": "last",
    "mpnet": "mean",
    "gemma2": "last",
    "modernbert": "mean",
    "rembert": "mean",
    "deberta-v2": "cls",
    "xlnet": "last",
}


def backbone(family: str, seed: int = 0) -> PreTrainedModel:
    """A random backbone; spread weights, so that differences show."""
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModel.from_config(copy.deepcopy((CONFIGS | PADDED)[family]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model.eval()


def classifier(
    model: PreTrainedModel, family: str, num_labels: int = 3, dtype: torch.dtype = torch.float32
) -> tuple[Network, Layout]:
    """A classifier on all linear layers of `model`, which it takes over, and the layout without a head."""
    modules = find_target_modules(model)
    head = random_head(num_labels, int(model.config.hidden_size), 4.0, seed=0)
    return Network(model, modules, objective=Classification(head, POOLING[family]), dtype=dtype), Layout(modules)


def random_adapter(layout: Layout, rank: int, seed: int = 0, scale: float = 0.2) -> Adapter:
    """An adapter whose B is not zero."""
    start = initial_adapter(layout, rank, 16.0, generator(seed, "adapter"))
    rng = generator(seed, "test-b")
    factors = {
        name: Factors(A=f.A, B=scale / rank * rng.standard_normal(f.B.shape, np.float32))
        for name, f in start.factors.items()
    }
    return Adapter(factors, start.lora_alpha)


def examples(count: int, num_labels: int = 3, seed: int = 0, longest: int = 12) -> TokenizedExamples:
    """Random token ids and labels."""
    rng = generator(seed, "test-examples")
    ids = tuple(rng.integers(3, VOCABULARY, rng.integers(1, longest + 1)) for _ in range(count))
    return TokenizedExamples(ids, rng.integers(0, num_labels, count))


def model_of(network: PreTrainedModel, family: str, num_labels: int = 3, dtype: torch.dtype = torch.float32) -> Model:
    """A model without a tokenizer, for clients that are tokenised already."""
    weights = fingerprint(network)
    engine, layout = classifier(network, family, num_labels, dtype)
    names = tuple(f"label {i}" for i in range(num_labels))
    size = sum(p.numel() for p in network.parameters())
    return Model(family, engine, None, layout, names, 64, size, weights)  # type: ignore[arg-type]


def clients(sizes: Sequence[int], num_labels: int = 3) -> tuple[Client, ...]:
    """Clients with this many random training examples each, and half as many to test with."""
    return tuple(
        Client(k, f"client {k}", examples(n, num_labels, seed=k), examples(n // 2 + 1, num_labels, seed=100 + k))
        for k, n in enumerate(sizes)
    )


class Stopping(Observer):
    """Presses Ctrl-C after a round."""

    def __init__(self, after: int) -> None:
        self.after = after

    def round_done(self, record: RoundRecord) -> None:
        if record.server_round == self.after:
            raise KeyboardInterrupt
