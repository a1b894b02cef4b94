"""One example as the model sees it: its text, with what is learnt marked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lora_a2.errors import DataError
from lora_a2.system.text import visible_lines
from lora_a2.tasks.base import Encoded
from lora_a2.tasks.causal_lm.encoding import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPENS, CLOSES = "⟦", "⟧"
"""Around each stretch of learnt tokens."""


def describe_example(tokenizer: PreTrainedTokenizerBase, encoded: Encoded, index: int) -> str:
    """The text of the given example at `index`, from 0 (users count from 1), special tokens included, with what is learnt in ⟦ ⟧.

    It is the text of the tokens, not of the data: what was cut is missing, and what a tokenizer does not know is seen. Characters
    that no terminal should be sent are escaped.

    Raises:
        DataError: there is no such example, or it was dropped.
    """
    ids, learnt = _tokens(encoded, index)
    edges = np.flatnonzero(np.diff(learnt.astype(np.int8), prepend=0, append=0)).tolist()
    texts = _texts(tokenizer, ids, [0, *edges, len(ids)])
    marked = (f"{OPENS}{text}{CLOSES}" if number % 2 else text for number, text in enumerate(texts))
    return visible_lines("".join(marked))


def example_values(tokenizer: PreTrainedTokenizerBase, encoded: Encoded, index: int) -> dict[str, Any]:
    """As `describe_example`, as plain values: the text, token ids, tokens, and the positions of those that are learnt.

    Raises:
        DataError: there is no such example, or it was dropped.
    """
    ids, learnt = _tokens(encoded, index)
    return {
        "example": index + 1,
        "text": _decoded(tokenizer, ids),
        "input_ids": ids.tolist(),
        "tokens": list(tokenizer.convert_ids_to_tokens(ids.tolist())),
        "learnt": np.flatnonzero(learnt).tolist(),
    }


def _tokens(encoded: Encoded, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids (length,), and which of them are learnt."""
    places = np.flatnonzero(encoded.rows == index)
    if not len(places):
        total = len(encoded.rows) + encoded.num_dropped
        if 0 <= index < total:
            raise DataError(f"Example {index + 1} was dropped, as there is nothing to learn from it; choose another.")
        raise DataError(f"There is no example {index + 1}: there are {total}, counted from 1.")
    place = int(places[0])
    return encoded.examples.input_ids[place], np.asarray(encoded.examples.labels[place]) != IGNORED


def _texts(tokenizer: PreTrainedTokenizerBase, ids: np.ndarray, edges: list[int]) -> list[str]:
    """The text between each two edges: what it adds to the text before it, as tokenizers drop a blank at the beginning of a text."""
    before = [_decoded(tokenizer, ids[:edge]) for edge in edges]
    return [
        whole[len(start) :] if whole.startswith(start) else _decoded(tokenizer, ids[first:last])
        for first, last, start, whole in zip(edges, edges[1:], before, before[1:], strict=False)
    ]


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: np.ndarray) -> str:
    return str(tokenizer.decode(ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False))
