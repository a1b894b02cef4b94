"""A fine-tuned classifier, read back from a run directory, an adapter folder or a model folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lora_a2.core.shown import count, few, shown
from lora_a2.core.types import Adapter, FloatArray
from lora_a2.errors import ModelError, RunError
from lora_a2.model.fingerprint import require_same
from lora_a2.model.given import UNNAMED, Given
from lora_a2.model.merged import read_merged
from lora_a2.model.options import ModelOptions
from lora_a2.model.peft_io import CONFIG, SavedAdapter, read_adapter
from lora_a2.model.pretrained import Model, load_model
from lora_a2.runs.directory import RunDirectory
from lora_a2.runs.unfinished import result_folder


class Predictor:
    """A fine-tuned classifier read from an adapter folder or a model folder, in float32."""

    def __init__(
        self,
        folder: str | Path,
        *,
        model: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        folder = Path(folder)
        saved = read_adapter(folder) if (folder / CONFIG).is_file() else None
        head, classifier = (saved.head, saved.classifier) if saved else read_merged(folder)
        self.label_names = classifier.label_names
        if saved is None and (model is not None or tokenizer is not None):
            raise RunError(f"{folder} holds the whole model: leave model and tokenizer out.")
        options = ModelOptions(
            target_modules=list(saved.adapter.factors) if saved else None,
            head="native" if classifier.native else "linear",
            head_values=head,
            pooling=classifier.pooling,
            dtype="float32",
            max_length=classifier.max_length,
            trust_remote_code=trust_remote_code,
        )
        base: str | PreTrainedModel = str(folder) if saved is None else saved.model
        if model is not None:
            given = Given(model, tokenizer)
            base = given.model if classifier.native else given.base
        with _offering_to_give(saved is not None and model is None):
            if base == UNNAMED:
                raise RunError(f"{folder} was trained on a model that was given loaded and has no name to load it by.")
            self._model = load_model(base, labels=classifier.label_names, tokenizer=tokenizer, options=options)
            require_same(self._model.name, self._model.fingerprint, classifier.fingerprint, str(folder))
        self._adapter = _fitting(saved, self._model, folder) if saved else None

    def __repr__(self) -> str:
        return shown(self, repr(self._model.name), count(len(self.label_names), "label"), few(self.label_names))

    def logits(self, texts: str | Sequence[str]) -> FloatArray:
        """(n, C) float32; of one text that is no list, (C,).

        Raises:
            TypeError: one of them is no text.
        """
        if isinstance(texts, str):
            values: FloatArray = self.logits([texts])[0]
            return values
        if isinstance(texts, bytes) or not all(isinstance(text, str) for text in texts):
            raise TypeError(f"A text is a str, or a list of str; given was {texts!r:.60}.")
        if not texts:
            return np.zeros((0, len(self.label_names)), np.float32)
        return self._model.network.predict(self._adapter, self._model.tokenize(texts))

    def predict(self, texts: str | Sequence[str]) -> FloatArray:
        """Probabilities (n, C) float32 of the labels in `label_names`; of one text that is no list, (C,), as Transformers' tokenizers
        and pipelines answer one text for one text.

        Raises:
            TypeError: one of them is no text.
        """
        probabilities: FloatArray = torch.softmax(torch.from_numpy(self.logits(texts)), -1).numpy()
        return probabilities


@contextmanager
def _offering_to_give(can_be_given: bool) -> Iterator[None]:
    """Where the base model of an adapter cannot be loaded, or is another by now, the error says how to give it."""
    try:
        yield
    except (ModelError, RunError) as error:
        if not can_be_given:
            raise
        raise type(error)(
            f"{error} In Python the base model can be given: load_predictor(…, model=…, tokenizer=…)."
        ) from error


def _fitting(saved: SavedAdapter, model: Model, folder: Path) -> Adapter:
    for m in model.layout.modules:
        f = saved.adapter.factors[m.name]
        if f.A.shape != (saved.adapter.rank, m.d_in) or f.B.shape != (m.d_out, saved.adapter.rank):
            raise RunError(
                f"{folder} is damaged or not for {saved.model}: {m.name} has A {f.A.shape} and B {f.B.shape}; "
                f"expected {(saved.adapter.rank, m.d_in)} and {(m.d_out, saved.adapter.rank)}."
            )
    if saved.fan_in_fan_out != any(layer.conv1d for layer in model.network.layers.values()):
        raise RunError(f"{folder} is not for {saved.model}: its fan_in_fan_out is {saved.fan_in_fan_out}.")
    return saved.adapter


def load_predictor(
    run_dir: str | Path,
    *,
    model: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    trust_remote_code: bool = False,
) -> Predictor:
    """The classifier of a run directory, or of an adapter or model folder of a run.

    Of a run that is not finished it is that of the last finished round.

    An adapter's base model is loaded by its name. One that cannot be, since it was given to `load_model` loaded, is given here
    again: `model` with its `tokenizer`, which are copied. Python in the model's folder runs only with `trust_remote_code`.

    Raises:
        RunError: none of these, damaged, or no round is finished; or the base model is another than the adapter was trained on.
        ModelError: the base model cannot be loaded or copied.
    """
    if is_model_folder(run_dir):
        return Predictor(run_dir, model=model, tokenizer=tokenizer, trust_remote_code=trust_remote_code)
    with result_folder(RunDirectory.open(Path(run_dir)), trust_remote_code) as folder:
        return Predictor(folder, model=model, tokenizer=tokenizer, trust_remote_code=trust_remote_code)


def is_model_folder(folder: str | Path) -> bool:
    """Whether it is an adapter or model folder of a classifier, not a run directory."""
    return any((Path(folder) / name).is_file() for name in (CONFIG, "classifier.json"))
