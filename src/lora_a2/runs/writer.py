"""A fine-tuned language model that writes, read back from a run directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lora_a2.data.written import Turn
from lora_a2.errors import RunError
from lora_a2.runs.directory import RunDirectory


class Writer(Protocol):
    """A causal language model with what was learnt merged into its weights, its tokenizer, and how prompts are put to it."""

    @property
    def model(self) -> PreTrainedModel:
        """A plain Transformers model for causal language modelling, in evaluation mode."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer, with the chat template of the run."""

    def encode_prompt(self, turns: Sequence[Turn]) -> np.ndarray:
        """(length,) int64: the chat as the model saw chats while it was trained, up to where the answer begins.

        The run's system prompt stands before it if `turns` has none.
        """


def load_writer(run_dir: str | Path, trust_remote_code: bool = False) -> Writer:
    """The language model of a finished run.

    Raises:
        RunError: there is no finished run, or what it trained labels texts and writes none.
    """
    RunDirectory.open(Path(run_dir)).require_finished()
    raise RunError(f"{run_dir} has a classifier, which writes no texts: label some with 'lora-a2 predict {run_dir}'.")
