"""Pre-trained backbones and their tokenizers: out of a package, a local folder, or a model hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lora_a2.engine.packing import Pooling
from lora_a2.model.catalog import has_optional_pooling, model_config
from lora_a2.model.checkpoint import load_tokenizer, load_weights
from lora_a2.model.fingerprint import fingerprint
from lora_a2.model.hub import hub_or_cache
from lora_a2.model.language_models import HUB_IDS
from lora_a2.model.names import canonical
from lora_a2.model.packages import find_packaged, packaged_folder
from lora_a2.model.pooling import usual_pooling


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
    """The model called `name`: out of a package, a local folder, or a hub id.

    Args:
        name: of the model.
        pooling: what to use instead of the model's usual one.
        trust_remote_code: whether Python in the model's folder may run.

    Raises:
        ModelError: there is no such model, its package is missing or not the published one, its weights or the tokenizer
            cannot be loaded or do not belong together, or the model's own pooling is not known here.
    """
    source = find_source(name, trust_remote_code)
    options = {"add_pooling_layer": False} if has_optional_pooling(source.config) else {}
    with hub_or_cache(source.where, name):
        module = load_weights(name, source.where, trust_remote_code, **options)
        tokenizer = load_tokenizer(name, source.where, module, trust_remote_code)
        usual = pooling or usual_pooling(source.where, source.config)
    return Backbone(
        name=source.name,
        module=module,
        tokenizer=tokenizer,
        pooling=usual,
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
    """Where the model called `name` is: in a package, a local folder, or on a hub.

    Raises:
        ModelError: there is no such model, or its package is missing or not the published one.
    """
    packaged, folder = find_packaged(name), packaged_folder(name)
    config = model_config(name, trust_remote_code)
    if packaged is not None and packaged.hub_id is not None:
        return Source(str(folder or packaged.hub_id), packaged.hub_id, config)
    if folder is None and not Path(name).is_dir():
        hub_id = HUB_IDS.get(canonical(name), name)
        return Source(hub_id, hub_id, config)
    where = str((folder or Path(name)).absolute())
    return Source(where, where, config)
