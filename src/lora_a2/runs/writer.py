"""A fine-tuned language model that writes, read back from a run directory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lora_a2.core.shown import count, shown
from lora_a2.data.written import Turn
from lora_a2.engine.targets import linear_layers
from lora_a2.errors import RunError
from lora_a2.model.causal import LanguageModel, load_language_model
from lora_a2.model.fingerprint import require_same
from lora_a2.model.merging import merge
from lora_a2.model.peft_io import CONFIG
from lora_a2.model.writer_io import WRITER, SavedWriter, read_merged_writer, read_writer_adapter
from lora_a2.runs.directory import RunDirectory
from lora_a2.runs.unfinished import result_folder
from lora_a2.tasks.base import EncodingOptions
from lora_a2.tasks.causal_lm.encoding import encode_prompt


@dataclass(frozen=True)
class Writer:
    """A causal language model with what was learnt merged into its weights, in float32 on the CPU, and how prompts are put to it.

    Attributes:
        model: a plain Transformers model, in evaluation mode.
        tokenizer: its tokenizer, with the chat template of the run.
        encoding: how the run made tokens of examples.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    encoding: EncodingOptions

    def __repr__(self) -> str:
        return shown(self, type(self.model).__name__, count(self.model.num_parameters(), "weight"))

    def encode_prompt(self, turns: Sequence[Turn]) -> np.ndarray:
        """(length,) int64: the chat as the model saw chats while it was trained, up to where the answer begins.

        The run's system prompt stands before it if `turns` has none.
        """
        return encode_prompt(self.tokenizer, turns, self.encoding)


def load_writer(run_dir: str | Path, trust_remote_code: bool = False) -> Writer:
    """The language model of a run directory, or of an adapter or model folder of a run, with all that was learnt merged.

    Of a run that is not finished it is that of the last finished round.

    Raises:
        RunError: none of these, damaged, or no round is finished; what it trained labels texts and writes none; or the base model is another than the
            adapter was trained on.
        ModelError: the base model cannot be loaded.
    """
    if (Path(run_dir) / WRITER).is_file():
        return _load(Path(run_dir), run_dir, trust_remote_code)
    with result_folder(RunDirectory.open(Path(run_dir)), trust_remote_code) as folder:
        return _load(folder, run_dir, trust_remote_code)


def _load(folder: Path, run_dir: str | Path, trust_remote_code: bool) -> Writer:
    if not (folder / WRITER).is_file():
        raise RunError(
            f"{run_dir} has a classifier, which writes no texts: label some with 'lora-a2 predict {run_dir}'."
        )
    if not (folder / CONFIG).is_file():
        config = read_merged_writer(folder)
        found = load_language_model(str(folder), trust_remote_code)
        require_same(str(folder), found.backbone.fingerprint, config.fingerprint, str(folder))
    else:
        saved = read_writer_adapter(folder)
        config = saved.config
        found = load_language_model(saved.model, trust_remote_code)
        require_same(saved.model, found.backbone.fingerprint, config.fingerprint, str(folder))
        _check_shapes(folder, saved, found)
        merge(found.backbone.module, saved.adapter, {})
    tokenizer = found.backbone.tokenizer
    if config.encoding.chat_template is not None:
        tokenizer.chat_template = config.encoding.chat_template
    return Writer(found.whole, tokenizer, config.encoding)


def _check_shapes(folder: Path, saved: SavedWriter, found: LanguageModel) -> None:
    """Refuses an adapter whose layers the model does not have, or has in other shapes.

    Raises:
        RunError: it is so.
    """
    layers = {m.name: m for m in linear_layers(found.backbone.module).values()}
    for name, f in saved.adapter.factors.items():
        layer = layers.get(name)
        if layer is None or (f.A.shape[1], f.B.shape[0]) != (layer.d_in, layer.d_out):
            raise RunError(f"{folder} is damaged or not for {saved.model}: {name} has A {f.A.shape} and B {f.B.shape}.")
