"""What a language model has learnt, as files: an adapter in PEFT's format, or the whole model merged.

adapter_config.json, adapter_model.safetensors    as PEFT reads them, for what `AutoModelForCausalLM` gives
config.json, model.safetensors, tokenizer files   or, merged, as `AutoModelForCausalLM` and `AutoTokenizer` read them
writer.json                                       how examples were encoded, fingerprint of the base model (or of the merged one)
SHA256SUMS                                        the digests of all of them
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save
from transformers import PreTrainedModel

from lora_a2.core.types import Adapter, BaseDelta
from lora_a2.errors import RunError
from lora_a2.model.adapter_schema import LARGEST_LENGTH, PREFIX, adapter_config, factors_of, read_tensors
from lora_a2.model.fingerprint import require_same
from lora_a2.model.merging import merge, write_folder
from lora_a2.model.peft_io import CONFIG, TENSORS, checked, json_bytes, lora_config, one_line
from lora_a2.model.pretrained import Model
from lora_a2.system.files import write_all
from lora_a2.tasks.base import EncodingOptions

WRITER = "writer.json"
TASK_TYPE = "CAUSAL_LM"


@dataclass(frozen=True)
class WriterConfig:
    """What `writer.json` says.

    Attributes:
        encoding: how examples, and so prompts, become tokens.
        fingerprint: of the model that is adapted, or of the merged one.
        backbone: the backbone's name inside the whole model, such as "model".
    """

    encoding: EncodingOptions
    fingerprint: str
    backbone: str


@dataclass(frozen=True)
class SavedWriter:
    """What an adapter folder holds: the base model's name, the adapter, by names in the backbone, and `writer.json`."""

    model: str
    adapter: Adapter
    fan_in_fan_out: bool
    config: WriterConfig


def save_writer_adapter(folder: str | Path, model: Model, adapter: Adapter) -> None:
    """Writes an adapter folder; the same adapter gives the same bytes."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    start = _backbone_name(model)
    names = {name: f"{start}.{name}" for name in adapter.factors}
    tensors = {}
    for name, f in adapter.pair.factors.items():
        tensors[f"{PREFIX}{names[name]}.lora_A.weight"] = np.ascontiguousarray(f.A)
        tensors[f"{PREFIX}{names[name]}.lora_B.weight"] = np.ascontiguousarray(f.B)
    files = {
        TENSORS: save(tensors, metadata={"format": "pt"}),
        WRITER: _writer_file(model, model.fingerprint),
        CONFIG: json_bytes(lora_config(model, adapter, sorted(names.values()), TASK_TYPE)),
    }
    write_all(folder, files)


def save_merged_writer(folder: str | Path, model: Model, adapter: Adapter, base: BaseDelta) -> None:
    """Writes the pre-trained weights + `base` + scaling · B A, in float32, as a plain Transformers folder.

    The pre-trained weights are read again, since those in use may be in bfloat16. The folder appears once it is complete.

    Raises:
        ModelError: the model cannot be loaded any more.
        RunError: it is another one by now.
    """
    found = model.pretrained_writer()
    require_same(model.name, found.backbone.fingerprint, model.fingerprint, "the run")
    merge(found.backbone.module, adapter, base)
    tokenizer = found.backbone.tokenizer
    if model.encoding.chat_template is not None:
        tokenizer.chat_template = model.encoding.chat_template
    _generation_config(found.whole)
    write_folder(Path(folder), found.whole, tokenizer, {WRITER: _writer_file(model, found.fingerprint)})


def _generation_config(whole: PreTrainedModel) -> None:
    """Keeps stop ids and the like; settings of sampling that do not fit together would keep the model from being saved."""
    found = whole.generation_config
    if found is None or found.do_sample:
        return
    for name in ("temperature", "top_p", "top_k", "min_p", "typical_p"):
        if hasattr(found, name):
            setattr(found, name, None)


def read_writer_adapter(folder: Path) -> SavedWriter:
    """Reads what `save_writer_adapter` wrote.

    Raises:
        RunError: the folder is missing or damaged, or asks for something that is not known here.
    """
    checked(folder, "adapter", {CONFIG, TENSORS, WRITER})
    try:
        config = adapter_config(json.loads((folder / CONFIG).read_bytes()))
        writer = _writer_config(json.loads((folder / WRITER).read_bytes()))
        factors = factors_of(read_tensors(folder / TENSORS), config)
        if strange := [name for name in factors if not name.startswith(f"{writer.backbone}.")]:
            raise ValueError(f"{strange[0]} is not in {writer.backbone}")
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise RunError(f"{folder} is not a complete adapter folder: {one_line(error)}.") from error
    own = {name.removeprefix(f"{writer.backbone}."): f for name, f in factors.items()}
    return SavedWriter(config.model, Adapter(own, config.lora_alpha), config.fan_in_fan_out, writer)


def read_merged_writer(folder: Path) -> WriterConfig:
    """`writer.json` of a folder that `save_merged_writer` wrote, whose files are compared with their digests.

    Raises:
        RunError: it is missing or damaged.
    """
    checked(folder, "model", {"config.json", WRITER})
    try:
        return _writer_config(json.loads((folder / WRITER).read_bytes()))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{folder} is not a complete model folder: {one_line(error)}.") from error


def _writer_file(model: Model, fingerprint: str) -> bytes:
    encoding = {name: getattr(model.encoding, name) for name in ("system_prompt", "chat_template", "train_on")}
    values = {"max_length": model.max_length, **encoding, "model_fingerprint": fingerprint}
    return json_bytes({**values, "backbone": _backbone_name(model)})


def _backbone_name(model: Model) -> str:
    assert model.whole is not None, "the model writes"
    return str(model.whole.base_model_prefix)


def _writer_config(values: object) -> WriterConfig:
    """Checks the content of `writer.json`.

    Raises:
        ValueError: a value is missing, unknown, of another type, or out of bounds.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{WRITER} is no JSON object")
    known = {"max_length", "system_prompt", "chat_template", "train_on", "model_fingerprint", "backbone"}
    if wrong := sorted(values.keys() ^ known):
        raise ValueError(f"{WRITER} has, or lacks, {wrong[0]}")
    found: dict[str, Any] = values
    most = found["max_length"]
    if not isinstance(most, int) or isinstance(most, bool) or not 1 <= most <= LARGEST_LENGTH:
        raise ValueError(f"max_length is {str(most)[:60]}; expected a whole number from 1 to {LARGEST_LENGTH}")
    for name in ("system_prompt", "chat_template"):
        if found[name] is not None and not isinstance(found[name], str):
            raise ValueError(f"{name} is {str(found[name])[:60]}; expected a text")
    if found["train_on"] not in ("completion", "all"):
        raise ValueError(f"train_on is {str(found['train_on'])[:60]}; expected completion or all")
    for name in ("model_fingerprint", "backbone"):
        if not isinstance(found[name], str) or not found[name]:
            raise ValueError(f"{name} is {str(found[name])[:60]}; expected a text")
    encoding = EncodingOptions(most, found["system_prompt"], found["chat_template"], found["train_on"])
    return WriterConfig(encoding, found["model_fingerprint"], found["backbone"])
