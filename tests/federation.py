"""A whole federation of tiny models and data: in memory, and as files for the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lora_a2.core.randomness import generator
from lora_a2.core.types import Layout
from lora_a2.federation.population import Client
from lora_a2.model.pretrained import Model
from tiny import VOCABULARY, backbone, classifier, examples

torch.set_num_threads(1)  # two threads on so little work wait for each other more than they compute

LABELS = ("late", "broken", "lost")


def tiny_model(family: str = "bert", head: str = "frozen") -> Model:
    """A `Model` around a tiny random classifier, without a tokenizer."""
    built, layout = classifier(backbone(family), family, len(LABELS))
    if head == "trained":
        layout = Layout(layout.modules, tuple((n, tuple(v.shape)) for n, v in built.objective.head.items()))
    return Model("tiny", built, None, layout, LABELS, 64, 1000, "0" * 64)  # type: ignore[arg-type]


def tiny_clients(counts: tuple[int, ...] = (7, 12, 4)) -> tuple[Client, ...]:
    """Clients with unequal numbers of random examples."""
    return tuple(Client(k, f"client-{k}", examples(n, seed=k), examples(5, seed=100 + k)) for k, n in enumerate(counts))


def save_model(folder: Path, family: str = "bert") -> Path:
    """A tiny random backbone with a word-level tokenizer, as a folder that `--model` takes."""
    words = ["[PAD]", "[UNK]", "[CLS]", *(f"w{i}" for i in range(3, VOCABULARY))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 2)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]")
    backbone(family).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def save_data(path: Path, count: int = 24, labels: tuple[str, ...] = LABELS) -> Path:
    """A csv file of random texts; every label occurs."""
    rng = generator(0, "test-texts")
    rows = [
        (" ".join(f"w{i}" for i in rng.integers(3, VOCABULARY, rng.integers(2, 9))), labels[k % len(labels)])
        for k in range(count)
    ]
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    return path


def texts(count: int = 9) -> list[str]:
    """Random texts of the tiny vocabulary, of unequal lengths."""
    rng = generator(1, "test-texts")
    return [" ".join(f"w{i}" for i in rng.integers(3, VOCABULARY, n)) for n in np.arange(count) % 7 + 1]


def study_options(folder: Path, num_clients: int = 2) -> dict[str, Any]:
    """The options of a tiny run that takes a blink; model and data are written to `folder`."""
    return {
        "data": str(save_data(folder / "texts.csv")),
        "model": str(save_model(folder / "model")),
        "dtype": "float32",
        "num_clients": num_clients,
        "num_server_rounds": 2,
        "local_epochs": 1,
        "learning_rate": 0.01,
        "r": 4,
    }
