"""Texts to be labelled, as tokens: how many are cut is counted alike for every kind of tokenizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerBase

from federation import save_model, texts
from lora_a2.data.labelled import Examples
from lora_a2.tasks.base import EncodingOptions
from lora_a2.tasks.classification import encode


def made(kind: str, folder: Path) -> PreTrainedTokenizerBase:
    """Of the fast kind, written in Rust, or of the slow kind, in Python."""
    tokenizer: PreTrainedTokenizerBase = (
        AutoTokenizer.from_pretrained(save_model(folder)) if kind == "fast" else ByT5Tokenizer()
    )
    assert tokenizer.is_fast == (kind == "fast")
    return tokenizer


@pytest.mark.parametrize("kind", ["fast", "slow"])
@pytest.mark.parametrize("max_length", [2, 4, 7, 12, 500])
def test_cut_texts_are_counted(kind: str, max_length: int, tmp_path: Path) -> None:
    tokenizer, given = made(kind, tmp_path), texts(20)
    labels = np.arange(20) % 3
    lengths = [len(tokenizer(text)["input_ids"]) for text in given]
    found = encode(tokenizer, Examples(tuple(given), labels, None), EncodingOptions(max_length))
    assert found.num_cut == sum(length > max_length for length in lengths)
    assert [len(ids) for ids in found.examples.input_ids] == [min(length, max_length) for length in lengths]
    assert found.examples.labels is labels


def test_no_texts_are_none_cut(tmp_path: Path) -> None:
    found = encode(made("fast", tmp_path), Examples((), np.zeros(0, np.int64), None), EncodingOptions(4))
    assert (len(found.examples), found.num_cut, len(found.rows)) == (0, 0, 0)
