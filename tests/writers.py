"""Tiny random language models that write, of many families, and clients for them."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from families import FAMILIES, VOCABULARY
from lora_a2.core.randomness import generator
from lora_a2.core.types import Layout
from lora_a2.engine.network import Network
from lora_a2.engine.targets import find_target_modules
from lora_a2.engine.work import TokenizedExamples
from lora_a2.federation.population import Client
from lora_a2.model.causal import find_head
from lora_a2.model.pretrained import Model
from lora_a2.tasks.causal_lm import TASK
from lora_a2.tasks.causal_lm.encoding import IGNORED
from lora_a2.tasks.causal_lm.objective import CausalLM
from plain_writers import tokenizer

PACKED = ("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text", "gpt2")
"""Families that have to be packed."""
WRITERS = (
    *PACKED,
    *("bloom", "cohere", "cohere2", "falcon", "gpt_neo", "gpt_neox", "gptj", "granite", "mpt", "olmo", "olmo2", "opt", "phi"),
    *("phi3", "smollm3", "stablelm", "starcoder2"),
)  # fmt: skip


def whole_model(family: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> PreTrainedModel:
    """A random model with its causal head, its weights spread so that differences show."""
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(copy.deepcopy(FAMILIES[family]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.to(dtype).eval()


def writing_network(
    whole: PreTrainedModel, dtype: torch.dtype = torch.float32, max_length: int = 64
) -> tuple[Network, Layout]:
    """A network on all linear layers of the model's backbone, which it takes over, and its layout."""
    backbone = whole.base_model
    head = find_head(whole, backbone)
    modules = find_target_modules(backbone)
    return Network(backbone, modules, objective=CausalLM(head), dtype=dtype, max_length=max_length), Layout(modules)


def writing_model(whole: PreTrainedModel, dtype: torch.dtype = torch.float32) -> Model:
    """A model without a tokenizer, for clients that are tokenised already."""
    size = sum(p.numel() for p in whole.parameters())
    network, layout = writing_network(whole, dtype)
    return Model("tiny", network, None, layout, (), 64, size, "0" * 64, task=TASK, whole=whole)  # type: ignore[arg-type]


def written(count: int, seed: int = 0, longest: int = 14) -> TokenizedExamples:
    """Random token ids; a stretch of each is learnt, at the end or with something behind it, and at least one token."""
    rng = generator(seed, "test-written")
    ids, labels = [], []
    for _ in range(count):
        own = rng.integers(3, VOCABULARY, rng.integers(2, longest + 1))
        first = int(rng.integers(1, len(own)))
        last = int(rng.integers(first + 1, len(own) + 1))
        learnt = np.full(len(own), IGNORED)
        learnt[first:last] = own[first:last]
        ids.append(own)
        labels.append(learnt)
    return TokenizedExamples(tuple(ids), tuple(labels))


def writing_clients(sizes: Sequence[int]) -> tuple[Client, ...]:
    """Clients with this many random training examples each, and half as many to test with."""
    return tuple(
        Client(k, f"client {k}", written(n, seed=k), written(n // 2 + 1, seed=100 + k)) for k, n in enumerate(sizes)
    )


def save_writer(folder: Path, family: str = "llama") -> Path:
    """A tiny random model with a tokenizer of bytes, as a folder that `--model` takes."""
    whole_model(family).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def save_questions(path: Path, count: int = 24, seed: int = 0) -> Path:
    """Random prompts and completions, a line each."""
    rng = generator(seed, "test-questions")
    texts = ["".join(rng.choice(list("abcdef "), size)) + "x" for size in rng.integers(3, 12, 2 * count)]
    rows = [{"prompt": texts[k], "completion": texts[count + k]} for k in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def writing_options(folder: Path, num_clients: int = 3) -> dict[str, Any]:
    """The options of a tiny run of a model that writes; model and data are written to `folder`."""
    return {
        "data": str(save_questions(folder / "questions.jsonl")),
        "model": str(save_writer(folder / "model")),
        "dtype": "float32",
        "partitioner": "iid",
        "num_clients": num_clients,
        "num_server_rounds": 2,
        "local_epochs": 1,
        "learning_rate": 0.01,
        "r": 4,
    }
