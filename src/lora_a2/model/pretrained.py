"""A model ready for a federation: backbone, tokenizer, head and adapter layout in one value."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Unpack

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lora_a2.core.randomness import generator
from lora_a2.core.types import FloatArray, Layout
from lora_a2.engine.calling import hidden_width
from lora_a2.engine.classifier import Classifier
from lora_a2.engine.precision import pick_device, pick_dtype
from lora_a2.engine.targets import find_target_modules
from lora_a2.errors import ModelError
from lora_a2.model.backbone import Backbone, load_backbone
from lora_a2.model.catalog import full_parameters
from lora_a2.model.defaults import model_defaults
from lora_a2.model.given import Given
from lora_a2.model.options import ModelKeywords, ModelOptions

LARGEST_UNKNOWN_SHARE = 0.5
"""Of a data set's tokens, special ones apart."""


@dataclass(frozen=True)
class Model:
    """What every participant loads before the first round.

    Attributes:
        name: a hub id or a folder, from which the backbone can be loaded again; of a model that was given loaded, what its
            configuration says.
        classifier: the frozen model with its LoRA layers.
        tokenizer: the backbone's.
        layout: modules of the adapter, and the head's tensors where it is trained.
        label_names: C class names.
        max_length: tokens after which a text is cut.
        full_parameters: weights of the whole model, what full fine-tuning would send.
        fingerprint: of the pre-trained weights (`model.fingerprint`).
        revision: the commit of the hub that they are of; None for folders.
        trust_remote_code: whether code of the model runs, also where it is loaded again.
        given: what the backbone is a copy of, where the user had loaded it; None: it was loaded by its name.
    """

    name: str
    classifier: Classifier
    tokenizer: PreTrainedTokenizerBase
    layout: Layout
    label_names: tuple[str, ...]
    max_length: int
    full_parameters: int
    fingerprint: str
    revision: str | None = None
    trust_remote_code: bool = False
    given: Given | None = None

    def pretrained(self) -> Backbone:
        """The backbone as it was before any training, in float32, loaded or copied again.

        Raises:
            ModelError: it cannot be any more.
        """
        if self.given is not None:
            return self.given.backbone(self.classifier.pooling)
        return load_backbone(self.name, self.classifier.pooling, self.trust_remote_code)

    def tokenize(self, texts: Sequence[str]) -> tuple[np.ndarray, ...]:
        """Token ids (length,) int64 of each text, with the model's special tokens, cut at `max_length`."""
        if not texts:
            return ()
        encoded = self.tokenizer(list(texts), truncation=True, max_length=self.max_length)
        return tuple(np.asarray(ids or [self.classifier.pad_token_id], np.int64) for ids in encoded["input_ids"])

    def tokenize_data(self, texts: Sequence[str]) -> tuple[np.ndarray, ...]:
        """As `tokenize`, for the texts of a data set, which the tokenizer has to know.

        Raises:
            ModelError: most of their tokens are unknown to it.
        """
        tokens = self.tokenize(texts)
        unknown, special = self.tokenizer.unk_token_id, self.tokenizer.all_special_ids
        if unknown is None or not tokens:
            return tokens
        flat = np.concatenate(tokens)
        words = flat[~np.isin(flat, [i for i in special if i != unknown])]
        share = float((words == unknown).mean()) if len(words) else 0.0
        if share > LARGEST_UNKNOWN_SHARE:
            raise ModelError(
                f"The tokenizer of {self.name} does not know {100 * share:.0f} % of the tokens in these texts, which all look alike "
                "to the model: choose a model for their language, or give the folder the tokenizer that the model was trained with."
            )
        return tokens


def random_head(num_labels: int, width: int, scale: float, seed: int) -> dict[str, FloatArray]:
    """The seeded head: weight (C, H) Gaussian with standard deviation scale / √H, bias (C,) zero."""
    weight = generator(seed, "head").standard_normal((num_labels, width), np.float32)
    return {"weight": weight * np.float32(scale / np.sqrt(width)), "bias": np.zeros(num_labels, np.float32)}


def load_model(
    model: str | os.PathLike[str] | PreTrainedModel = "all-MiniLM-L6-v2",
    *,
    labels: Sequence[str],
    tokenizer: PreTrainedTokenizerBase | None = None,
    options: ModelOptions | None = None,
    **given: Unpack[ModelKeywords],
) -> Model:
    """Loads a backbone and puts LoRA layers and a head on it.

    A model that is loaded already is copied, and neither it nor its tokenizer is changed: there are two of it in memory. Its
    weights may be in any float type and on any device; they are copied in float32.

    Args:
        model: "all-MiniLM-L6-v2" (embedded), a local folder or a hub id; or a loaded model of Transformers: a bare backbone, as
            `AutoModel` gives, or one for sequence classification whose head is one linear layer. That head is used, its rows
            brought into the order of `labels`, which have to be those of its `config.id2label`.
        labels: the class names.
        tokenizer: of a loaded model; a name or a folder brings its own.
        options: how it is prepared; None: the usual way.
        given: single fields of `ModelOptions`, which come before those of `options`.

    Raises:
        ModelError: no such model, one that is damaged or incomplete, no module matches `target_modules`, or a loaded model that
            cannot be copied (with PEFT adapters, quantised weights, another head) or whose labels are others.
        TypeError: there is no such option.
    """
    o = replace(options or ModelOptions(), **given)
    if len(set(labels)) < len(labels):
        raise ModelError("labels has one of its names twice: give each class once.")
    backbone, own, source = _opened(model, tokenizer, labels, o)
    modules = find_target_modules(backbone.module, o.target_modules)
    config = backbone.module.config
    width = hidden_width(backbone.module)
    scale = model_defaults(backbone.name).head_scale if o.head_scale is None else o.head_scale
    values = own or o.head_values or random_head(len(labels), width, scale, o.seed)
    if values["weight"].shape != (len(labels), width):
        raise ModelError(f"The head is {values['weight'].shape}; expected {(len(labels), width)} for this model.")
    where = pick_device(o.device)
    classifier = Classifier(
        backbone.module.to(where),  # type: ignore[arg-type]
        modules,
        pooling=backbone.pooling,
        head=values,
        dtype=pick_dtype(o.dtype, where),
        pad_token_id=int(backbone.tokenizer.pad_token_id or 0),
        max_length=o.max_length,
    )
    trained = tuple((n, v.shape) for n, v in values.items()) if o.head == "trained" else ()
    return Model(
        name=backbone.name,
        classifier=classifier,
        tokenizer=backbone.tokenizer,
        layout=Layout(modules, trained),
        label_names=tuple(labels),
        max_length=o.max_length if classifier.room is None else min(o.max_length, classifier.room),
        full_parameters=full_parameters(config),
        fingerprint=backbone.fingerprint,
        revision=backbone.revision,
        trust_remote_code=o.trust_remote_code,
        given=source,
    )


def _opened(
    model: str | os.PathLike[str] | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    labels: Sequence[str],
    o: ModelOptions,
) -> tuple[Backbone, dict[str, FloatArray] | None, Given | None]:
    """The backbone; of a loaded model also its own head, if it has one, and what it is a copy of."""
    if isinstance(model, str | os.PathLike):
        if tokenizer is not None:
            raise ModelError("tokenizer is for a loaded model: a name or a folder brings its own, so leave it out.")
        name = model if isinstance(model, str) else str(Path(model).expanduser().absolute())
        return load_backbone(name, o.chosen_pooling, o.trust_remote_code), None, None
    source = Given(model, tokenizer)
    if not source.is_classifier:
        return source.backbone(o.chosen_pooling), None, source
    if o.head_values is not None or o.head_scale is not None:
        raise ModelError(
            "head_values and head_scale are for a new head, and the model has one: leave them out, or give the backbone, "
            "load_model(model.base_model, …)."
        )
    head, pooling = source.head(labels, o.chosen_pooling)
    return source.backbone(pooling), head, source


def layout_head(model: Model) -> dict[str, FloatArray]:
    """The start of a trained head, empty if the head is frozen."""
    if not model.layout.head:
        return {}
    return {name: value.cpu().numpy().copy() for name, value in model.classifier.head.items()}
