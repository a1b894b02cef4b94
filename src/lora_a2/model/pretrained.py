"""A model ready for a federation: backbone, tokenizer, head and adapter layout in one value."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Unpack

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lora_a2.core.randomness import generator
from lora_a2.core.shown import count, few, shown
from lora_a2.core.types import FloatArray, Layout
from lora_a2.data.labelled import Examples
from lora_a2.data.written import Samples
from lora_a2.engine.calling import hidden_width
from lora_a2.engine.network import Network
from lora_a2.engine.objective import Objective
from lora_a2.engine.precision import pick_device, pick_dtype
from lora_a2.engine.targets import find_target_modules
from lora_a2.errors import ModelError
from lora_a2.model.backbone import Backbone, load_backbone
from lora_a2.model.catalog import full_parameters
from lora_a2.model.causal import LanguageModel, load_language_model
from lora_a2.model.classifier import Classifier, copy_classifier, load_classifier
from lora_a2.model.defaults import model_defaults
from lora_a2.model.given import Given
from lora_a2.model.names import spelled
from lora_a2.model.native import NativeHead, Start
from lora_a2.model.options import ModelKeywords, ModelOptions
from lora_a2.tasks.base import Encoded, EncodingOptions, Task
from lora_a2.tasks.causal_lm import TASK as CAUSAL_LM
from lora_a2.tasks.causal_lm.objective import CausalLM
from lora_a2.tasks.classification import TASK as CLASSIFICATION
from lora_a2.tasks.classification import tokenized
from lora_a2.tasks.classification.objective import Classification
from lora_a2.tasks.registry import DEFAULT_TASK, get_task


@dataclass(frozen=True)
class Model:
    """What every participant loads before the first round.

    Attributes:
        task: what it is fine-tuned for.
        name: a hub id or a folder, from which the backbone can be loaded again; of a model that was given loaded, what its
            configuration says.
        network: the frozen model with its LoRA layers.
        tokenizer: the backbone's.
        layout: modules of the adapter, and the head's tensors where it is trained.
        label_names: C class names; none for a model that writes.
        max_length: tokens after which a text is cut.
        full_parameters: weights of the whole model, what full fine-tuning would send.
        fingerprint: of the pre-trained weights (`model.fingerprint`).
        revision: the commit of the hub that they are of; None for folders.
        trust_remote_code: whether code of the model runs, also where it is loaded again.
        given: what the backbone is a copy of, where the user had loaded it; None: it was loaded by its name.
        whole: the model with its causal head, of which the network's backbone is a part; None for other tasks.
        encoding: how examples become tokens.
        native: the head of the model's own architecture, which is in the network too; None: a linear one, or another task.
    """

    name: str
    network: Network
    tokenizer: PreTrainedTokenizerBase
    layout: Layout
    label_names: tuple[str, ...]
    max_length: int
    full_parameters: int
    fingerprint: str
    revision: str | None = None
    trust_remote_code: bool = False
    given: Given | None = None
    task: Task = CLASSIFICATION
    whole: PreTrainedModel | None = None
    encoding: EncodingOptions = field(default_factory=EncodingOptions)
    native: NativeHead | None = None

    def __repr__(self) -> str:
        return shown(
            self,
            repr(self.name),
            self.task.name,
            few(self.label_names),
            count(self.full_parameters, "weight"),
            self.network.device,
        )

    def pretrained(self) -> Backbone:
        """The backbone as it was before any training, in float32, loaded or copied again.

        Raises:
            ModelError: it cannot be any more.
        """
        if self.given is not None:
            return self.given.backbone(self.network.objective.pooling)
        return load_backbone(self.name, self.network.objective.pooling, self.trust_remote_code)

    def pretrained_writer(self) -> LanguageModel:
        """The language model as it was before any training, in float32, loaded again.

        Raises:
            ModelError: it cannot be any more.
        """
        return load_language_model(self.name, self.trust_remote_code)

    def classifier(self) -> Classifier:
        """The whole model with its native head as it was before any training, loaded or copied again.

        Raises:
            ModelError: it cannot be any more.
        """
        if self.given is not None:
            return copy_classifier(self.given, self.label_names)
        return load_classifier(self.name, len(self.label_names), self.trust_remote_code)

    def tokenize(self, texts: Sequence[str]) -> tuple[np.ndarray, ...]:
        """Token ids (length,) int64 of each text, with the model's special tokens, cut at `max_length`."""
        return tokenized(self.tokenizer, texts, self.max_length, self.encoding.strips_padding)

    def encode(self, examples: Examples | Samples) -> Encoded:
        """The examples as token ids and labels.

        Raises:
            ModelError: the tokenizer does not know the texts, or its chat template does not fit.
            DataError: an example that is none for this task.
        """
        return self.task.encode(self.tokenizer, examples, replace(self.encoding, max_length=self.max_length))


def random_head(num_labels: int, width: int, scale: float, seed: int) -> dict[str, FloatArray]:
    """The seeded head: weight (C, H) Gaussian with standard deviation scale / √H, bias (C,) zero."""
    weight = generator(seed, "head").standard_normal((num_labels, width), np.float32)
    return {"weight": weight * np.float32(scale / np.sqrt(width)), "bias": np.zeros(num_labels, np.float32)}


def load_model(
    model: str | os.PathLike[str] | PreTrainedModel = "all-MiniLM-L6-v2",
    *,
    labels: Sequence[str] | None = None,
    task: str = DEFAULT_TASK,
    tokenizer: PreTrainedTokenizerBase | None = None,
    options: ModelOptions | None = None,
    **given: Unpack[ModelKeywords],
) -> Model:
    """Loads a backbone and puts LoRA layers and what its task needs on it.

    A model that is loaded already is copied, and neither it nor its tokenizer is changed: there are two of it in memory. Its
    weights may be in any float type and on any device; they are copied in float32.

    Args:
        model: "all-MiniLM-L6-v2" (embedded), a local folder or a hub id; or a loaded model of Transformers: a bare backbone, as
            `AutoModel` gives, or one for sequence classification whose head is one linear layer. That head is used, its rows
            brought into the order of `labels`, which have to be those of its `config.id2label`.
        labels: the class names, for classification.
        task: "classification", or "causal-lm" for a language model that writes.
        tokenizer: of a loaded model; a name or a folder brings its own.
        options: how it is prepared; None: the usual way.
        given: single fields of `ModelOptions`, which come before those of `options`.

    Raises:
        ModelError: no such model, one that is damaged or incomplete, no module matches `target_modules`, or a loaded model that
            cannot be copied (with PEFT adapters, quantised weights, another head) or whose labels are others; labels for a model
            that writes, or none for one that classifies; a model without a causal head.
        ConfigError: an unknown task.
        TypeError: there is no such option.
    """
    o = replace(options or ModelOptions(), **given)
    chosen = get_task(task)
    if chosen is CAUSAL_LM:
        return _writer(model, labels, tokenizer, o)
    if labels is None:
        raise ModelError("labels are missing: give the class names, or task='causal-lm' for a model that writes.")
    if len(set(labels)) < len(labels):
        raise ModelError("labels has one of its names twice: give each class once.")
    if o.head == "native":
        return _native(model, tokenizer, labels, o)
    backbone, own, source = _opened(model, tokenizer, labels, o)
    width = hidden_width(backbone.module)
    scale = model_defaults(backbone.name).head_scale if o.head_scale is None else o.head_scale
    values = own or o.head_values or random_head(len(labels), width, scale, o.seed)
    if values["weight"].shape != (len(labels), width):
        raise ModelError(f"The head is {values['weight'].shape}; expected {(len(labels), width)} for this model.")
    objective = Classification(values, backbone.pooling)
    return _prepared(backbone, objective, o, _trained(values, o), labels=tuple(labels), given=source)


def _trained(values: dict[str, FloatArray], o: ModelOptions) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Names and shapes of the head's tensors that clients train."""
    return tuple((n, v.shape) for n, v in values.items()) if o.train_head else ()


def _native(
    model: str | os.PathLike[str] | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    labels: Sequence[str],
    o: ModelOptions,
) -> Model:
    """A classifier with the head of its own architecture."""
    if len(labels) < 2:
        raise ModelError("A native head needs two labels at least: Transformers takes one label for a regression.")
    source = None
    if isinstance(model, str | os.PathLike):
        whole = load_classifier(_name(model, tokenizer), len(labels), o.trust_remote_code)
    else:
        source = Given(model, tokenizer)
        whole = copy_classifier(source, labels)
    scale = model_defaults(whole.name).head_scale if o.head_scale is None else o.head_scale
    backbone, head = whole.taken_apart(Start(tuple(labels), o.seed, scale, o.head_values))
    if o.chosen_pooling not in (None, head.pooling):
        raise ModelError(
            f"The native head of {whole.name} reads the pooling {head.pooling}, and {o.pooling} was given: leave pooling out, or "
            "choose --head linear."
        )
    objective = Classification(head.values, head.pooling, head.features)
    found = _prepared(backbone, objective, o, _trained(head.values, o), labels=tuple(labels), given=source)
    return replace(found, native=head, encoding=replace(found.encoding, strips_padding=head.strips_padding))


def _name(model: str | os.PathLike[str], tokenizer: PreTrainedTokenizerBase | None) -> str:
    """A model's name; a folder's is absolute, but for one that is given as a text."""
    if tokenizer is not None:
        raise ModelError("tokenizer is for a loaded model: a name or a folder brings its own, so leave it out.")
    if not isinstance(model, str):
        return str(Path(model).expanduser().absolute())
    return model if Path(model).exists() else spelled(model)


def _writer(
    model: str | os.PathLike[str] | PreTrainedModel,
    labels: Sequence[str] | None,
    tokenizer: PreTrainedTokenizerBase | None,
    o: ModelOptions,
) -> Model:
    """A language model that writes."""
    if labels is not None:
        raise ModelError("labels are for classification: leave them out for a model that writes.")
    if not isinstance(model, str | os.PathLike):
        raise ModelError("A loaded model is for classification; give a model that writes by its name or folder.")
    writer = load_language_model(_name(model, tokenizer), o.trust_remote_code)
    where = pick_device(o.device)
    whole = writer.whole.to(where)  # type: ignore[arg-type]
    found = _prepared(writer.backbone, CausalLM(writer.head), o, (), labels=())
    inside = {id(parameter) for parameter in writer.backbone.module.parameters()}
    for parameter in whole.parameters():
        if id(parameter) not in inside:  # the head, where it is not the embeddings
            parameter.data = parameter.data.to(found.network.dtype)
    return replace(found, task=CAUSAL_LM, whole=whole)


def _prepared(
    backbone: Backbone,
    objective: Objective,
    o: ModelOptions,
    trained: tuple[tuple[str, tuple[int, ...]], ...],
    *,
    labels: tuple[str, ...],
    given: Given | None = None,
) -> Model:
    """A backbone with LoRA layers and its objective; `trained` are names and shapes of the tensors of a trained head."""
    modules = find_target_modules(backbone.module, o.target_modules)
    config = backbone.module.config
    where = pick_device(o.device)
    network = Network(
        backbone.module.to(where),  # type: ignore[arg-type]
        modules,
        objective=objective,
        dtype=pick_dtype(o.dtype, where),
        pad_token_id=int(backbone.tokenizer.pad_token_id or 0),
        max_length=o.max_length,
        load_in_4bit=o.load_in_4bit,
    )
    return Model(
        name=backbone.name,
        network=network,
        tokenizer=backbone.tokenizer,
        layout=Layout(modules, trained),
        label_names=labels,
        max_length=o.max_length if network.room is None else min(o.max_length, network.room),
        full_parameters=full_parameters(config),
        fingerprint=backbone.fingerprint,
        revision=backbone.revision,
        trust_remote_code=o.trust_remote_code,
        given=given,
        encoding=EncodingOptions(o.max_length, o.system_prompt, o.chat_template, o.train_on),
    )


def _opened(
    model: str | os.PathLike[str] | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    labels: Sequence[str],
    o: ModelOptions,
) -> tuple[Backbone, dict[str, FloatArray] | None, Given | None]:
    """The backbone; of a loaded model also its own head, if it has one, and what it is a copy of."""
    if isinstance(model, str | os.PathLike):
        return load_backbone(_name(model, tokenizer), o.chosen_pooling, o.trust_remote_code), None, None
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
    return {name: value.cpu().numpy().copy() for name, value in model.network.objective.head.items()}
