"""A fine-tuned classifier, read back from a run directory, an adapter folder or a model folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from lora_a2.core.types import Adapter, FloatArray
from lora_a2.errors import RunError
from lora_a2.model.fingerprint import require_same
from lora_a2.model.merged import read_merged
from lora_a2.model.peft_io import CONFIG, SavedAdapter, read_adapter
from lora_a2.model.pretrained import Model, load_model
from lora_a2.runs.directory import RunDirectory


class Predictor:
    """A fine-tuned classifier read from an adapter folder or a model folder, in float32."""

    def __init__(self, folder: str | Path, *, trust_remote_code: bool = False) -> None:
        folder = Path(folder)
        saved = read_adapter(folder) if (folder / CONFIG).is_file() else None
        head, classifier = (saved.head, saved.classifier) if saved else read_merged(folder)
        self.label_names = classifier.label_names
        self._model = load_model(
            saved.model if saved else str(folder),
            labels=classifier.label_names,
            target_modules=list(saved.adapter.factors) if saved else None,
            head_values=head,
            pooling=classifier.pooling,
            dtype="float32",
            max_length=classifier.max_length,
            trust_remote_code=trust_remote_code,
        )
        require_same(self._model.name, self._model.fingerprint, classifier.fingerprint, str(folder))
        self._adapter = _fitting(saved, self._model, folder) if saved else None

    def logits(self, texts: Sequence[str]) -> FloatArray:
        """(n, C) float32."""
        return self._model.classifier.predict(self._adapter, self._model.tokenize(texts))

    def predict(self, texts: Sequence[str]) -> FloatArray:
        """Probabilities (n, C) float32 of the labels in `label_names`."""
        probabilities: FloatArray = torch.softmax(torch.from_numpy(self.logits(texts)), 1).numpy()
        return probabilities


def _fitting(saved: SavedAdapter, model: Model, folder: Path) -> Adapter:
    for m in model.layout.modules:
        f = saved.adapter.factors[m.name]
        if f.A.shape != (saved.adapter.rank, m.d_in) or f.B.shape != (m.d_out, saved.adapter.rank):
            raise RunError(
                f"{folder} is damaged or not for {saved.model}: {m.name} has A {f.A.shape} and B {f.B.shape}; "
                f"expected {(saved.adapter.rank, m.d_in)} and {(m.d_out, saved.adapter.rank)}."
            )
    if saved.fan_in_fan_out != any(layer.conv1d for layer in model.classifier.layers.values()):
        raise RunError(f"{folder} is not for {saved.model}: its fan_in_fan_out is {saved.fan_in_fan_out}.")
    return saved.adapter


def load_predictor(run_dir: str | Path, *, trust_remote_code: bool = False) -> Predictor:
    """The classifier of a finished run directory, or of an adapter or model folder of a run.

    Python in the model's folder runs only with `trust_remote_code`.

    Raises:
        RunError: none of these, or damaged.
    """
    run_dir = Path(run_dir)
    if any((run_dir / name).is_file() for name in (CONFIG, "classifier.json")):
        return Predictor(run_dir, trust_remote_code=trust_remote_code)
    run = RunDirectory.open(run_dir)
    return Predictor(run.result(), trust_remote_code=trust_remote_code)
