"""Models that are known by name: shapes that need no network, and what else a model is called. Nothing here loads one."""

from __future__ import annotations

import difflib
from typing import Any

from lora_a2.model.language_models import HUB_IDS, LANGUAGE_MODELS

_BERT: dict[str, Any] = {"model_type": "bert", "vocab_size": 30522, "max_position_embeddings": 512}
_ROBERTA: dict[str, Any] = {
    "model_type": "roberta",
    "vocab_size": 50265,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}

BUILT_IN: dict[str, dict[str, Any]] = {
    "roberta-base": _ROBERTA,
    "roberta-large": _ROBERTA
    | {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    "bert-base-uncased": _BERT,
    "distilbert-base-uncased": {"model_type": "distilbert", "vocab_size": 30522},
    "all-MiniLM-L6-v2": _BERT | {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536},
    "gpt2": {"model_type": "gpt2"},
    "mpnet-base": {"model_type": "mpnet", "vocab_size": 30527, "max_position_embeddings": 514, "layer_norm_eps": 1e-5},
    **LANGUAGE_MODELS,
}
"""Name → what differs from the defaults of its Transformers configuration class, with `model_type`."""

ALIASES: dict[str, str] = {
    "FacebookAI/roberta-base": "roberta-base",
    "FacebookAI/roberta-large": "roberta-large",
    "google-bert/bert-base-uncased": "bert-base-uncased",
    "bert-base": "bert-base-uncased",
    "distilbert/distilbert-base-uncased": "distilbert-base-uncased",
    "distilbert-base": "distilbert-base-uncased",
    "sentence-transformers/all-MiniLM-L6-v2": "all-MiniLM-L6-v2",
    "openai-community/gpt2": "gpt2",
    "sentence-transformers/all-mpnet-base-v2": "mpnet-base",
    **{hub_id: name for name, hub_id in HUB_IDS.items()},
    "gemma-3-1b": "gemma-3-1b-pt",
    "Phi-3.5-mini": "Phi-3.5-mini-instruct",
    "TinyLlama-1.1B": "TinyLlama-1.1B-Chat-v1.0",
}
"""Other names of built-in models."""


def spelled(name: str) -> str:
    """A name that is known, in the case in which it is published; any other as it is."""
    return name if name in BUILT_IN or name in ALIASES else _SPELLED.get(name.casefold(), name)


def canonical(name: str) -> str:
    """The name in `BUILT_IN` of a model that is known, whatever its alias and case; any other as it is."""
    known = spelled(name)
    return ALIASES.get(known, known)


def nearest(name: str) -> str:
    """A sentence for who has misspelt a name."""
    near = difflib.get_close_matches(name.casefold(), _SPELLED, n=1, cutoff=0.5)
    return f"Did you mean {_SPELLED[near[0]]!r}?" if near else f"Built in: {', '.join(BUILT_IN)}."


_SPELLED = {name.casefold(): name for name in (*ALIASES, *BUILT_IN)}
