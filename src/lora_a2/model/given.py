"""A model that the user has loaded already, with its tokenizer, copied into a backbone; the user's own stay as they are.

The copy is built from the model's configuration, as it would be from a folder, and must compute what the original does: layers that
were exchanged, or a function that was replaced, would else be lost without a word.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lora_a2.core.types import FloatArray
from lora_a2.engine.calling import first_line, hidden_width, vocabulary_size
from lora_a2.engine.packing import Pooling
from lora_a2.errors import ModelError
from lora_a2.model.backbone import Backbone
from lora_a2.model.checkpoint import fit_tokenizer, new_weights, of_backbone, of_base, quiet, some
from lora_a2.model.fingerprint import fingerprint, unused
from lora_a2.model.pooling import kind_pooling, usual_pooling

UNNAMED = "(a model without a name)"
"""The name of a model whose configuration says none."""
_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_CLASSIFIER = "ForSequenceClassification"


@dataclass(frozen=True)
class Given:
    """A loaded model, bare or for sequence classification, and its tokenizer.

    Raises:
        ModelError: they are something else, or the model has adapters, quantised weights, or weights that are not there.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None

    def __post_init__(self) -> None:
        kind = type(self.model).__name__
        if hasattr(self.model, "peft_config") or _has_adapters(self.model):
            raise ModelError(
                f"{kind} has PEFT adapters: give what its merge_and_unload() returns, or the model without them."
            )
        if not isinstance(self.model, PreTrainedModel):
            raise ModelError(
                f"A {kind} is no model of Transformers: give a name, a folder, or what AutoModel.from_pretrained gives."
            )
        if not isinstance(self.tokenizer, PreTrainedTokenizerBase):
            what = "none" if self.tokenizer is None else f"a {type(self.tokenizer).__name__}"
            raise ModelError(
                f"{kind} needs its tokenizer, and {what} was given: load_model(model, tokenizer=AutoTokenizer.from_pretrained(…), …)."
            )
        weights = list(self.model.parameters())
        if getattr(self.model, "hf_quantizer", None) is not None or any(w.dtype not in _FLOATS for w in weights):
            raise ModelError(f"{kind} has quantised weights: load it without a quantization_config.")
        if any(w.is_meta for w in weights):
            raise ModelError(f"{kind} has weights that are not loaded, or lie on disk: load it without device_map.")
        if (self.base is self.model) == self.is_classifier:
            raise ModelError(
                f"{kind} is neither a bare backbone nor for sequence classification: give its backbone, load_model(model.base_model, …)."
            )

    @property
    def base(self) -> PreTrainedModel:
        """The model without a head."""
        base = self.model.base_model
        assert isinstance(base, PreTrainedModel)
        return base

    @property
    def is_classifier(self) -> bool:
        """Whether it has a head for sequence classification."""
        return type(self.model).__name__.endswith(_CLASSIFIER)

    def backbone(self, pooling: Pooling | None) -> Backbone:
        """A copy in float32 on the CPU.

        Raises:
            ModelError: the model is not what its configuration says, or the tokenizer does not belong to it.
        """
        assert self.tokenizer is not None, "refused above"
        name = name_of(self.base.config)
        module = _copied(self.base)
        hidden_width(module)  # says why a model cannot be called at all
        with _evaluating(self.base):
            _require_same_vectors(self.base, module)
        tokenizer = fit_tokenizer(name, copy.deepcopy(self.tokenizer), module)
        return Backbone(
            name=name,
            module=module,
            tokenizer=tokenizer,
            pooling=pooling or _usual_pooling(name, module.config),
            fingerprint=fingerprint(module, tokenizer),
            revision=getattr(module.config, "_commit_hash", None),
        )

    def rows(self, labels: Sequence[str]) -> list[int]:
        """The row of the classifier's own head for each label.

        Raises:
            ModelError: it has other labels.
        """
        return _rows(self.model, labels)

    def head(self, labels: Sequence[str], pooling: Pooling | None) -> tuple[dict[str, FloatArray], Pooling]:
        """The classifier's own head, its rows in the order of `labels`, and the pooling that it was trained with.

        Raises:
            ModelError: it has other labels, or is no linear layer on a pooling that is known here.
        """
        rows = self.rows(labels)
        own = [m for m in self.model.children() if m is not self.base and any(True for _ in m.parameters())]
        linear = own[0] if len(own) == 1 else None
        found = None
        if isinstance(linear, nn.Linear):
            with _evaluating(self.model):
                found = _pooling_before(
                    self.model, self.base, linear, [pooling] if pooling else list(get_args(Pooling))
                )
        if found is None or not isinstance(linear, nn.Linear):
            raise ModelError(
                f"The head of {type(self.model).__name__} is not one linear layer on "
                f"{'the pooling ' + pooling if pooling else 'the mean, the first or the last token vector'}: give head='native', or the backbone, "
                "load_model(model.base_model, …), which gets a new head."
            )
        weight, bias = linear.weight.detach().float().cpu(), linear.bias
        values = torch.zeros(len(weight)) if bias is None else bias.detach().float().cpu()
        return {"weight": weight.numpy()[rows], "bias": values.numpy()[rows]}, found


def name_of(config: PretrainedConfig) -> str:
    """Where a model says that it comes from: an absolute folder or a hub id; `UNNAMED`: nowhere."""
    name = str(config.name_or_path or "")
    return str(Path(name).absolute()) if name and Path(name).is_dir() else name or UNNAMED


def _has_adapters(model: nn.Module) -> bool:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return isinstance(model, nn.Module) and any(isinstance(module, BaseTunerLayer) for module in model.modules())


def _copied(base: PreTrainedModel) -> PreTrainedModel:
    """Built anew from the configuration, with the weights of `base`, without its pooling layer where that is optional."""
    kind: Any = type(base)
    options = {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(kind).parameters else {}
    module, report = _built(kind, base, base.config, options)
    _require_whole(kind, module, report)
    return module


def copied_classifier(given: Given, num_labels: int) -> tuple[PreTrainedModel, frozenset[str]]:
    """A copy in float32 of a loaded model with a head, or of one without in the class that has its architecture's head.

    Returns:
        The copy, and the names of the weights, of head and pooling layer, that the original lacks: they are random.

    Raises:
        ModelError: the model is not what its configuration says.
    """
    kind: Any = type(given.model)
    config = copy.deepcopy(given.model.config)
    if not given.is_classifier:
        kind = AutoModelForSequenceClassification._model_mapping[type(config)]
        config.num_labels = num_labels
    whole, report = _built(kind, given.model, config, {})
    _require_whole(kind, whole.base_model, of_base(whole, report))  # type: ignore[arg-type]
    new = new_weights(report)
    if given.is_classifier and (lost := {key for key in new if not unused(key.partition(".")[2])}):
        raise ModelError(f"{kind.__name__} has another head than its configuration says ({some(lost)}).")
    with _evaluating(given.model):
        _require_same_vectors(given.base, whole.base_model)  # type: ignore[arg-type]
        if given.is_classifier:
            _require_same_logits(given.model, whole)
    return whole, new


def _built(
    kind: Any, model: PreTrainedModel, stated: PretrainedConfig, options: dict[str, Any]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A `kind` with the weights of `model`, in float32 on the CPU, and what Transformers says of them."""
    config = copy.deepcopy(stated)
    config._attn_implementation = None  # the usual one: others may want another number type or device
    values = {
        name: value.detach().to("cpu", torch.float32 if value.is_floating_point() else value.dtype, copy=True)
        for name, value in model.state_dict().items()
    }
    with quiet():
        try:
            module, report = kind.from_pretrained(
                None,
                config=config,
                state_dict=values,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # they are refused below
                output_loading_info=True,
                **options,
            )
        except Exception as error:  # each model has reasons of its own
            raise ModelError(f"{kind.__name__} cannot be copied: {first_line(error)}") from error
    base = module.base_model
    base.config._name_or_path = stated.name_or_path
    return module, report


def _require_whole(kind: Any, module: PreTrainedModel, report: dict[str, Any]) -> None:
    """Refuses a copy that has other layers than the original.

    Raises:
        ModelError: it has.
    """
    lacking = {key for key in report["missing_keys"] if not unused(key)}
    other = lacking | {key for key, *_ in report["mismatched_keys"] if not unused(key)}
    other |= {key for key in report["unexpected_keys"] if of_backbone(module, key)}
    if other:
        raise ModelError(
            f"{kind.__name__} has other layers than its configuration says ({some(other)}): change model.config too, so that a model "
            "built from it has the same."
        )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout and gradients; each layer is set back to the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.train(False)
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def _sentences(base: PreTrainedModel) -> list[Tensor]:
    """Token ids (1, length) of two sentences without special tokens."""
    known = [getattr(base.config, name, None) for name in ("pad_token_id", "bos_token_id", "eos_token_id")]
    ids = np.setdiff1d(np.arange(vocabulary_size(base)), [i for i in known if isinstance(i, int)])
    return [torch.from_numpy(np.resize(ids[3:], n).astype(np.int64))[None] for n in (7, 4)]


def _vectors(base: PreTrainedModel, sentence: Tensor) -> Tensor:
    """Token vectors (length, H) float32, on the CPU."""
    ids = sentence.to(next(base.parameters()).device)
    try:
        hidden: Tensor = base(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    except Exception as error:  # each model has reasons of its own
        raise ModelError(
            f"{type(base).__name__} cannot be called with token ids and an attention mask alone: {first_line(error)}"
        ) from error
    return hidden[0].float().cpu()


def _alike(one: Tensor, other: Tensor, model: PreTrainedModel) -> bool:
    """Whether two tensors differ by no more than rounding in the model's own number type does."""
    exact = all(w.dtype in (torch.float32, torch.float64) for w in model.parameters())
    return float((one - other).square().mean().sqrt()) <= (1e-3 if exact else 5e-2) * float(
        other.square().mean().sqrt()
    )


def _require_same_vectors(base: PreTrainedModel, module: PreTrainedModel) -> None:
    for sentence in _sentences(base):
        with _evaluating(module):
            expected = _vectors(module, sentence)
        if not _alike(_vectors(base, sentence), expected, base):
            raise ModelError(
                f"{type(base).__name__} computes something else than its configuration and weights say, as if parts of it had been "
                "exchanged: give a model whose class and configuration say what it does."
            )


def _require_same_logits(model: PreTrainedModel, whole: PreTrainedModel) -> None:
    for sentence in _sentences(whole):
        with _evaluating(whole):
            expected = whole(input_ids=sentence, attention_mask=torch.ones_like(sentence)).logits
        ids = sentence.to(next(model.parameters()).device)
        if not _alike(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float().cpu(), expected, model):
            raise ModelError(
                f"{type(model).__name__} computes other logits than its configuration and weights say, as if parts of its head had "
                "been exchanged: give the backbone, load_model(model.base_model, …)."
            )


def _usual_pooling(name: str, config: PretrainedConfig) -> Pooling:
    if name == UNNAMED:
        return kind_pooling(config)
    try:
        return usual_pooling(name, config)
    except ModelError as error:
        raise ModelError(f"{error} Or give pooling, one of {', '.join(get_args(Pooling))}.") from error


def stated_labels(config: PretrainedConfig) -> tuple[str, ...]:
    """The class names of a classifier's configuration, in their order."""
    stated = {int(i): str(name) for i, name in (config.id2label or {}).items()}
    return tuple(stated[i] for i in sorted(stated))


def _unnamed(stated: Sequence[str]) -> bool:
    return all(name == f"LABEL_{i}" for i, name in enumerate(stated))


def label_rows(stated: Sequence[str], labels: Sequence[str]) -> list[int] | None:
    """For each label its place among the class names of a head, or its number if these are none; None: they are others."""
    numbers = [str(i) for i in range(len(stated))]
    for names in (list(stated), *([numbers] if _unnamed(stated) else [])):
        if sorted(names) == sorted(labels):
            return [names.index(label) for label in labels]
    return None


def _rows(model: PreTrainedModel, labels: Sequence[str]) -> list[int]:
    """The row of the head for each label."""
    names = stated_labels(model.config)
    rows = label_rows(names, labels)
    if rows is None:
        raise ModelError(
            f"The head of {type(model).__name__} has the labels {some(names)}, and labels are {some(labels)}: "
            + (
                "set model.config.id2label to what they mean, or "
                if _unnamed(names) and len(names) == len(labels)
                else ""
            )
            + "give the backbone, load_model(model.base_model, …), which gets a new head."
        )
    return rows


def _pooling_before(
    model: PreTrainedModel, base: PreTrainedModel, linear: nn.Linear, candidates: Sequence[Pooling]
) -> Pooling | None:
    """The pooling on which `linear` gives the model's own logits."""
    pooled = {"mean": lambda v: v.mean(0), "cls": lambda v: v[0], "last": lambda v: v[-1]}
    bias = None if linear.bias is None else linear.bias.float().cpu()
    found = set(candidates)
    for sentence in _sentences(base):
        ids = sentence.to(next(model.parameters()).device)
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].float().cpu()
        vectors = _vectors(base, sentence)
        for pooling in list(found):
            ours = nn.functional.linear(pooled[pooling](vectors), linear.weight.float().cpu(), bias)
            if not _alike(ours, logits, model):
                found.discard(pooling)
    return found.pop() if len(found) == 1 else None
