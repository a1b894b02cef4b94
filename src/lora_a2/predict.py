"""A fine-tuned classifier, read back from a run directory or an adapter folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from lora_a2.errors import RunError
from lora_a2.model.peft_io import read_adapter
from lora_a2.model.pretrained import Model, load_model
from lora_a2.runs import RunDirectory
from lora_a2.types import FloatArray


def require_weights(model: Model, expected: object, owner: str) -> None:
    """Compares a model's pre-trained weights with those that `owner`, a run or an adapter, was trained on.

    Raises:
        RunError: they are others.
    """
    if model.fingerprint != expected:
        raise RunError(
            f"The weights of {model.name} are not those that {owner} was trained on (fingerprint {model.fingerprint[:12]}; expected "
            f"{str(expected)[:12]}): restore them, or train anew."
        )


class Predictor:
    """A fine-tuned classifier read from an adapter folder, in float32."""

    def __init__(self, folder: str | Path, *, trust_remote_code: bool = False) -> None:
        saved = read_adapter(Path(folder))
        self.label_names = saved.label_names
        self._model = load_model(
            saved.model,
            labels=saved.label_names,
            target_modules=list(saved.adapter.factors),
            head_values=saved.head,
            pooling=saved.pooling,
            dtype="float32",
            max_length=saved.max_length,
            trust_remote_code=trust_remote_code,
        )
        require_weights(self._model, saved.fingerprint, str(folder))
        for m in self._model.layout.modules:
            f = saved.adapter.factors[m.name]
            if f.A.shape != (saved.adapter.rank, m.d_in) or f.B.shape != (m.d_out, saved.adapter.rank):
                raise RunError(
                    f"{folder} is damaged or not for {saved.model}: {m.name} has A {f.A.shape} and B {f.B.shape}; "
                    f"expected {(saved.adapter.rank, m.d_in)} and {(m.d_out, saved.adapter.rank)}."
                )
        self._model.classifier.set_base(saved.base)
        self._adapter = saved.adapter

    def logits(self, texts: Sequence[str]) -> FloatArray:
        """(n, C) float32."""
        return self._model.classifier.predict(self._adapter, self._model.tokenize(texts))

    def predict(self, texts: Sequence[str]) -> FloatArray:
        """Probabilities (n, C) float32 of the labels in `label_names`."""
        probabilities: FloatArray = torch.softmax(torch.from_numpy(self.logits(texts)), 1).numpy()
        return probabilities


def load_predictor(run_dir: str | Path, *, trust_remote_code: bool = False) -> Predictor:
    """The classifier of a finished run directory, or of an adapter folder.

    Python in the model's folder runs only with `trust_remote_code`.

    Raises:
        RunError: neither, or damaged.
    """
    run_dir = Path(run_dir)
    if (run_dir / "adapter_config.json").is_file():
        return Predictor(run_dir, trust_remote_code=trust_remote_code)
    run = RunDirectory.open(run_dir)
    run.require_finished()
    return Predictor(run.adapter, trust_remote_code=trust_remote_code)
