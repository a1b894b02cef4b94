"""Weights and tokenizer of a Transformers folder or hub id, taken only if they are whole and belong together.

Transformers fills weights that a checkpoint lacks with random numbers, and a missing tokenizer with an empty one. Both are
refused here. Weights are read from safetensors only, and code in a model's folder runs only if the user asks for it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.hub import cached_file

from lora_a2.engine.calling import vocabulary_size
from lora_a2.errors import ModelError
from lora_a2.model.fingerprint import unused

_SHOWN = 3
_ADAPTER = "adapter_config.json"


def load_weights(
    name: str, where: str, trust_remote_code: bool = False, auto: Any = AutoModel, **options: Any
) -> PreTrainedModel:
    """What `auto` gives for the folder or hub id `where`, in float32, every weight from the checkpoint.

    `name` is what the user calls the model. A pooling layer is not used; its weights may be missing. `auto` is `AutoModel` or one
    of its kind with a head, which then has to be in the checkpoint; `options` are those of the model's class.

    Raises:
        ModelError: the weights cannot be read, some are missing, have other shapes, or belong to no layer of the model; or an
            adapter lies beside them, since Transformers would load that, on the base model that it names, in their place.
    """
    module, report = _read(name, where, trust_remote_code, auto, options)
    _check_report(name, module, report)
    return module


def load_headed(
    name: str, where: str, num_labels: int, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, frozenset[str]]:
    """As `load_weights`, with a head for sequence classification, which the checkpoint may lack.

    Returns:
        The model, and the names of the weights, of head and pooling layer, that the checkpoint lacks or has for other classes: they
        are random.
    """
    auto = AutoModelForSequenceClassification
    whole, report = _read(name, where, trust_remote_code, auto, {"num_labels": num_labels})
    _check_report(name, whole.base_model, of_base(whole, report))  # type: ignore[arg-type]
    return whole, new_weights(report)


def new_weights(report: dict[str, Any]) -> frozenset[str]:
    """The names of the weights that Transformers says it has made up."""
    return frozenset({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})


def of_base(whole: PreTrainedModel, report: dict[str, Any]) -> dict[str, Any]:
    """A report on the backbone of `whole`, in its own names."""
    prefix = f"{whole.base_model_prefix}."
    missing = {key.removeprefix(prefix) for key in report["missing_keys"] if key.startswith(prefix)}
    shapes = [(key.removeprefix(prefix), *rest) for key, *rest in report["mismatched_keys"] if key.startswith(prefix)]
    return {**report, "missing_keys": missing, "mismatched_keys": shapes}


def _read(
    name: str, where: str, trust_remote_code: bool, auto: Any, options: dict[str, Any]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A model in float32, and what Transformers says of its weights."""
    if find_file(where, _ADAPTER) is not None:
        raise ModelError(
            f"Model {name!r} has an {_ADAPTER} beside it, so that Transformers would load the base model named there: give "
            "that base model, or a folder without the adapter."
        )
    with quiet():
        try:
            module, report = auto.from_pretrained(
                where,
                dtype=torch.float32,
                trust_remote_code=trust_remote_code,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # they are refused by name
                output_loading_info=True,
                **options,
            )
        except Exception as error:  # whatever its readers of damaged files come upon
            raise ModelError(f"Model {name!r} cannot be loaded: {_reason(error)}") from error
    return module, report


def _check_report(name: str, module: PreTrainedModel, report: dict[str, Any]) -> None:
    held = {key for key in module.state_dict() if not unused(key)}
    missing = {key for key in report["missing_keys"] if key in held}
    mismatched = {
        f"{key} is {tuple(found)} in the file and {tuple(wanted)} in the model"
        for key, found, wanted in report["mismatched_keys"]
        if key in held
    }
    strange = {key for key in report["unexpected_keys"] if of_backbone(module, key)}
    if missing:
        raise ModelError(
            f"Model {name!r}: its file lacks {some(missing)}"
            + (f", and has {some(report['unexpected_keys'])} instead" if report["unexpected_keys"] else "")
            + ". Transformers would fill them with random numbers: give a whole checkpoint whose names are its model's."
        )
    if mismatched:
        raise ModelError(f"Model {name!r}: weights of other shapes than config.json says: {some(mismatched)}.")
    if strange:
        raise ModelError(
            f"Model {name!r}: its file has weights that the model of its config.json has no place for: {some(strange)}."
        )
    if report.get("error_msgs"):
        raise ModelError(f"Model {name!r} cannot be loaded: {some(report['error_msgs'])}")


def of_backbone(module: PreTrainedModel, key: str) -> bool:
    """Whether a weight belongs to the backbone; else it is of a head, or of the pooling layer, which are not used."""
    own = key.removeprefix(f"{module.base_model_prefix}.")
    parts = dict(module.named_children())
    return any(name.split(".")[0] in parts for name in (own, key)) and not unused(own)


def load_tokenizer(
    name: str, where: str, module: PreTrainedModel, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer beside the weights of `module`; if it has no padding token, the end of a text pads.

    Raises:
        ModelError: it cannot be read, there are no files of one, or it has tokens that the model does not know.
    """
    return fit_tokenizer(name, read_tokenizer(name, where, trust_remote_code), module)


def read_tokenizer(name: str, where: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub id as it is.

    Raises:
        ModelError: it cannot be read, or there are no files of one.
    """
    with quiet():
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                where, trust_remote_code=trust_remote_code
            )
        except Exception as error:  # whatever its readers of damaged files come upon
            raise ModelError(f"The tokenizer of model {name!r} cannot be loaded: {_reason(error)}") from error
    files = set(tokenizer.vocab_files_names.values())
    if files and all(find_file(where, file) is None for file in files):
        raise ModelError(
            f"Model {name!r} has no tokenizer: none of {', '.join(sorted(files))} is there. Save it into the same folder with "
            "tokenizer.save_pretrained(FOLDER)."
        )
    return tokenizer


def fit_tokenizer(name: str, tokenizer: PreTrainedTokenizerBase, module: PreTrainedModel) -> PreTrainedTokenizerBase:
    """`tokenizer`, with the end of a text as its padding token if it has none.

    Raises:
        ModelError: it has tokens that the model does not know.
    """
    rows = vocabulary_size(module)
    last = max(tokenizer.get_vocab().values(), default=0)
    if last >= rows:
        raise ModelError(
            f"Model {name!r} has embeddings for {rows} tokens, but its tokenizer has one with the id {last}: they do not "
            "belong together. Give the model's own tokenizer, or enlarge the model with resize_token_embeddings and save it."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def find_file(where: str, file: str) -> Path | None:
    """A file of a folder or of a hub id, which is downloaded if it is not in the cache; None: there is no such file.

    Raises:
        ModelError: the hub does not answer.
    """
    if Path(where).is_dir():
        path = Path(where) / file
        return path if path.is_file() else None
    try:
        found = cached_file(where, file, _raise_exceptions_for_missing_entries=False)
    except OSError as error:
        raise ModelError(f"{file} of model {where!r} cannot be read: {_reason(error)}") from error
    return None if found is None else Path(found)


def some(names: Iterable[str]) -> str:
    """The first few, and how many there are."""
    known = sorted(names)
    more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
    return ", ".join(known[:_SHOWN]) + more


def _reason(error: BaseException) -> str:
    text = " ".join((str(error) or type(error).__name__).split("\n")[0].split())
    if isinstance(error, SafetensorError):
        return f"its safetensors file is damaged, or only a pointer that git-lfs did not replace: {text}."
    return text


_LOADING = threading.RLock()
"""Transformers changes its own classes while it loads a model (`no_tie_weights`): two threads at once leave them changed for good, and
heads that should be the embeddings' are tied to nothing from then on."""


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bar and no report of Transformers' while a model is loaded: by one thread at a time."""
    with _LOADING:
        yield from _silenced()


def _silenced() -> Iterator[None]:
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
