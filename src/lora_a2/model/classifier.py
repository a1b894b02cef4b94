"""Whole models for sequence classification, by name or loaded already, before they are taken apart into backbone and head."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lora_a2.engine.calling import hidden_width
from lora_a2.errors import ModelError
from lora_a2.model.backbone import Backbone, find_source
from lora_a2.model.checkpoint import fit_tokenizer, load_headed, load_tokenizer
from lora_a2.model.fingerprint import fingerprint
from lora_a2.model.given import Given, copied_classifier, label_rows, name_of, stated_labels
from lora_a2.model.hub import hub_or_cache
from lora_a2.model.native import NativeHead, Start, head_weights, take_head


@dataclass(frozen=True)
class Classifier:
    """A model with its architecture's own head, in float32.

    Attributes:
        name: what a reader of the adapter can load again: a hub id or a folder.
        whole: what `AutoModelForSequenceClassification` gives.
        new: names of the head's weights that the checkpoint lacks.
        known: the class names of the checkpoint's head; None: it has none.
        tokenizer: the model's own.
        revision: the commit of the hub that the weights are of; None for folders.
    """

    name: str
    whole: PreTrainedModel
    new: frozenset[str]
    known: tuple[str, ...] | None
    tokenizer: PreTrainedTokenizerBase
    revision: str | None

    def taken_apart(self, start: Start) -> tuple[Backbone, NativeHead]:
        """Backbone and head; `whole` is no use afterwards.

        Raises:
            ModelError: the backbone cannot be called, or the head is not understood.
        """
        base = self.whole.base_model
        assert isinstance(base, PreTrainedModel)
        hidden_width(base)
        own = self._own()
        head = take_head(self.whole, self.new, self.known, int(self.tokenizer.pad_token_id or 0), start)
        found = fingerprint(base, self.tokenizer, self._used(own, head, start.labels))
        return Backbone(self.name, base, self.tokenizer, head.pooling, found, self.revision), head

    def fingerprint(self, head: NativeHead, labels: Sequence[str]) -> str:
        """Of the pre-trained weights, as of the backbone that `taken_apart` gives; `head` is what it gives too."""
        base = self.whole.base_model
        assert isinstance(base, PreTrainedModel)
        return fingerprint(base, self.tokenizer, self._used(self._own(), head, labels))

    def _own(self) -> dict[str, Tensor]:
        """A copy of the head's weights that the checkpoint has."""
        return {n: p.detach().clone() for n, p in head_weights(self.whole).items() if n not in self.new}

    def _used(self, own: Mapping[str, Tensor], head: NativeHead, labels: Sequence[str]) -> list[Tensor]:
        """Those of them that are used: not the last layer if its classes are others."""
        kept = self.known is not None and label_rows(self.known, labels) is not None
        layer = {f"{head.last}.{name}" for name in head.values} if kept else set()
        return [own[n] for n in sorted((head.earlier.keys() | layer) & own.keys())]


def load_classifier(name: str, num_labels: int, trust_remote_code: bool = False) -> Classifier:
    """The model called `name`, a folder's or a hub's, with a head of this many classes.

    Raises:
        ModelError: there is no such model, Transformers has no head for it, or weights or tokenizer cannot be loaded or do not
            belong together.
    """
    source = find_source(name, trust_remote_code)
    require_head(name, source.config)
    with hub_or_cache(source.where, name):
        whole, new = load_headed(name, source.where, num_labels, trust_remote_code)
        base = whole.base_model
        assert isinstance(base, PreTrainedModel)
        tokenizer = load_tokenizer(name, source.where, base, trust_remote_code)
    known = stated_labels(source.config)
    return Classifier(source.name, whole, new, known, tokenizer, getattr(whole.config, "_commit_hash", None))


def copy_classifier(given: Given, labels: Sequence[str]) -> Classifier:
    """A copy of a loaded model; one without a head gets that of its architecture.

    Raises:
        ModelError: it is not what its configuration says, its classes are others, or Transformers has no head for it.
    """
    assert given.tokenizer is not None, "refused before"
    name = name_of(given.base.config)
    require_head(name, given.base.config)
    if given.is_classifier:
        given.rows(labels)
    whole, new = copied_classifier(given, len(labels))
    base = whole.base_model
    assert isinstance(base, PreTrainedModel)
    tokenizer = fit_tokenizer(name, copy.deepcopy(given.tokenizer), base)
    known = stated_labels(given.model.config) if given.is_classifier else None
    return Classifier(name, whole, new, known, tokenizer, getattr(base.config, "_commit_hash", None))


def require_head(name: str, config: PretrainedConfig) -> None:
    """Refuses a model for which Transformers has no class for sequence classification.

    Raises:
        ModelError: it has none, or has an encoder and a decoder.
    """
    remote = "AutoModelForSequenceClassification" in (getattr(config, "auto_map", None) or {})
    if not remote and type(config) not in AutoModelForSequenceClassification._model_mapping:
        raise ModelError(
            f"Model {name!r} is a {config.model_type}, for which Transformers has no classification head: choose --head linear."
        )
