"""Fine-tuned models as plain Transformers folders, for methods that move the base weights: no adapter would be enough.

config.json, model.safetensors, tokenizer files   as `AutoModel` and `AutoTokenizer` read them, everything merged; with a native
                                                  head as `AutoModelForSequenceClassification` and `pipeline` read them
head.safetensors, classifier.json, SHA256SUMS     as in an adapter folder (`model.peft_io`)
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lora_a2.core.types import Adapter, BaseDelta, FloatArray
from lora_a2.errors import RunError
from lora_a2.model.adapter_schema import ClassifierConfig
from lora_a2.model.fingerprint import fingerprint, require_same
from lora_a2.model.merging import merge, write_folder
from lora_a2.model.native import NativeHead, fill
from lora_a2.model.peft_io import (
    CLASSIFIER,
    checked,
    classifier_files,
    last_layer,
    one_line,
    read_head,
    read_labels,
)
from lora_a2.model.pretrained import Model


def save_merged(folder: str | Path, model: Model, adapter: Adapter, base: BaseDelta) -> None:
    """Writes the pre-trained weights + `base` + scaling · B A, in float32 and in the model's own layout.

    The pre-trained weights are read again, since those in use may be in bfloat16. The folder appears once it is complete.

    Raises:
        ModelError: the model cannot be loaded, or copied, any more.
        RunError: it is another one by now.
    """
    whole, tokenizer, found = _moved(model, adapter, base)
    write_folder(Path(folder), whole, tokenizer, classifier_files(model, adapter, found))


def _moved(model: Model, adapter: Adapter, base: BaseDelta) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    """The whole model with everything merged, its tokenizer, and its fingerprint."""
    if model.native is not None:
        return _moved_classifier(model, model.native, adapter, base)
    backbone = model.pretrained()
    require_same(model.name, backbone.fingerprint, model.fingerprint, "the run")
    merge(backbone.module, adapter, base)
    return backbone.module, backbone.tokenizer, fingerprint(backbone.module, backbone.tokenizer)


def _moved_classifier(
    model: Model, native: NativeHead, adapter: Adapter, base: BaseDelta
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    """As `_moved`, with the head, the names of the labels, and what `pipeline` has to know."""
    classifier = model.classifier()
    require_same(model.name, classifier.fingerprint(native, model.label_names), model.fingerprint, "the run")
    whole, tokenizer = classifier.whole, classifier.tokenizer
    fill(whole, native.tensors(last_layer(model, adapter)))
    merge(whole.base_model, adapter, base)
    whole.config.id2label = dict(enumerate(model.label_names))
    whole.config.label2id = {name: i for i, name in enumerate(model.label_names)}
    whole.config.problem_type = "single_label_classification"
    if native.strips_padding:  # elsewhere the head does not look at it, and positions may be counted from it
        whole.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    tokenizer.model_max_length = model.max_length  # for pipeline(…, truncation=True)
    whole.base_model.config = whole.config  # type: ignore[assignment] # what a reader finds
    saved = replace(classifier, new=frozenset(), known=model.label_names)
    return whole, tokenizer, saved.fingerprint(native, model.label_names)


def read_merged(folder: Path) -> tuple[dict[str, FloatArray] | None, ClassifierConfig]:
    """A linear head (None: the model has its own), and labels, of a folder that `save_merged` wrote, whose files are compared with
    their digests.

    Raises:
        RunError: it is missing or damaged.
    """
    checked(folder, "model", {"config.json", CLASSIFIER})
    try:
        classifier = read_labels(folder)
        return None if classifier.native else read_head(folder, classifier), classifier
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise RunError(f"{folder} is not a complete model folder: {one_line(error)}.") from error
