"""A model ready for a federation: backbone, tokenizer, head and adapter layout in one value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from lora_a2.core.randomness import generator
from lora_a2.core.types import FloatArray, Layout
from lora_a2.engine.calling import hidden_width
from lora_a2.engine.classifier import Classifier
from lora_a2.engine.packing import Pooling
from lora_a2.engine.precision import pick_device, pick_dtype
from lora_a2.engine.targets import find_target_modules
from lora_a2.errors import ModelError
from lora_a2.model.backbone import load_backbone
from lora_a2.model.catalog import full_parameters
from lora_a2.model.defaults import model_defaults

LARGEST_UNKNOWN_SHARE = 0.5
"""Of a data set's tokens, special ones apart."""


@dataclass(frozen=True)
class Model:
    """What every participant loads before the first round.

    Attributes:
        name: a hub id or a folder, from which the backbone can be loaded again.
        classifier: the frozen model with its LoRA layers.
        tokenizer: the backbone's.
        layout: modules of the adapter, and the head's tensors where it is trained.
        label_names: C class names.
        max_length: tokens after which a text is cut.
        full_parameters: weights of the whole model, what full fine-tuning would send.
        fingerprint: of the pre-trained weights (`model.fingerprint`).
        revision: the commit of the hub that they are of; None for folders.
        trust_remote_code: whether code of the model runs, also where it is loaded again.
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
    name: str = "all-MiniLM-L6-v2",
    *,
    labels: Sequence[str],
    target_modules: str | Sequence[str] | None = None,
    head: str = "frozen",
    head_scale: float | None = None,
    head_values: dict[str, FloatArray] | None = None,
    pooling: str = "auto",
    dtype: str = "auto",
    device: str = "auto",
    max_length: int = 128,
    seed: int = 0,
    trust_remote_code: bool = False,
) -> Model:
    """Loads a backbone and puts LoRA layers and a head on it.

    Args:
        name: "all-MiniLM-L6-v2" (embedded), a local folder or a hub id.
        labels: the class names.
        target_modules: as in PEFT; None: all linear layers of the transformer blocks.
        head: "frozen" keeps the seeded head for ever (as the paper does), "trained" lets clients train it too.
        head_scale: standard deviation of the head's weights times √H; None: the model's default.
        head_values: a head to use instead of the seeded one.
        pooling: "mean", "cls", "last", or "auto": the model's usual one.
        dtype: of the frozen weights: "float32", "bfloat16", or "auto": bfloat16 where it is faster.
        device: "cpu", "cuda", "cuda:1", … or "auto".
        max_length: tokens after which a text is cut.
        seed: of the head.
        trust_remote_code: whether Python in the model's folder may run.

    Raises:
        ModelError: no such model, one that is damaged or incomplete, or no module matches `target_modules`.
    """
    backbone = load_backbone(name, None if pooling == "auto" else _pooling(pooling), trust_remote_code)
    modules = find_target_modules(backbone.module, target_modules)
    config = backbone.module.config
    width = hidden_width(backbone.module)
    values = head_values or random_head(
        len(labels),
        width,
        model_defaults(name).head_scale if head_scale is None else head_scale,
        seed,
    )
    if values["weight"].shape != (len(labels), width):
        raise ModelError(f"The head is {values['weight'].shape}; expected {(len(labels), width)} for this model.")
    where = pick_device(device)
    classifier = Classifier(
        backbone.module.to(where),  # type: ignore[arg-type]
        modules,
        pooling=backbone.pooling,
        head=values,
        dtype=pick_dtype(dtype, where),
        pad_token_id=int(backbone.tokenizer.pad_token_id or 0),
        max_length=max_length,
    )
    trained = tuple((n, v.shape) for n, v in values.items()) if head == "trained" else ()
    return Model(
        name=backbone.name,
        classifier=classifier,
        tokenizer=backbone.tokenizer,
        layout=Layout(modules, trained),
        label_names=tuple(labels),
        max_length=max_length if classifier.room is None else min(max_length, classifier.room),
        full_parameters=full_parameters(config),
        fingerprint=backbone.fingerprint,
        revision=backbone.revision,
        trust_remote_code=trust_remote_code,
    )


def _pooling(name: str) -> Pooling:
    known: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "last": "last"}
    if name not in known:
        raise ModelError(f"Unknown pooling {name!r}: choose one of auto, {', '.join(known)}.")
    return known[name]


def layout_head(model: Model) -> dict[str, FloatArray]:
    """The start of a trained head, empty where the head is frozen."""
    if not model.layout.head:
        return {}
    return {name: value.cpu().numpy().copy() for name, value in model.classifier.head.items()}
