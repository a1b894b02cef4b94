"""Chats and texts as token ids, and the label of each token: itself where it is learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lora_a2.data.written import Sample, Samples, Turn
from lora_a2.engine.work import TokenizedExamples
from lora_a2.errors import DataError, ModelError
from lora_a2.tasks.base import Encoded, EncodingOptions
from lora_a2.tasks.causal_lm.pieces import Pieces
from lora_a2.tasks.causal_lm.rendering import ASSISTANT, ChatFormat, Rendered, with_system
from lora_a2.tasks.classification import require_known

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""The label of a token that is not learnt, as in Transformers."""
LAST_ALONE = "The chat template does not show where all answers of a chat stand: of chats with several, the last alone is learnt."


def encode(
    tokenizer: PreTrainedTokenizerBase, samples: Samples | Sequence[Sample], options: EncodingOptions
) -> Encoded:
    """Examples as token ids and labels.

    Chats are rendered by the chat template, or, where there is none, joined by line breaks with the end of text behind each answer.
    An answer is learnt with what ends its turn; where the template ends none, the end of text is put behind the last. A chat that is
    longer than `max_length` loses the beginning of its prompt: what stays of that are a token that opens every text and a system turn
    that takes at most half of it, and the tokens before the answer. Plain text loses its end. The first token is never learnt.

    Raises:
        DataError: a chat has no answer, or a last one that is longer than `max_length`, or the template takes no such chat; the message says which.
        ModelError: the tokenizer is of the slow kind, has no token for the end, or does not know the texts; or its chat template
            fails with the first chat.
    """
    rows = samples.samples if isinstance(samples, Samples) else tuple(samples)
    encoder = _Encoder(tokenizer, options)
    found: dict[int, _Tokens] = {}
    num_cut = 0
    for row, sample in enumerate(rows):
        try:
            tokens = encoder.one(sample)
        except (DataError, ModelError) as error:
            raise type(error)(f"Example {row + 1}: {error}") from None
        if tokens.learnt[1:].any():
            found[row] = tokens
            num_cut += tokens.cut
    ids = tuple(tokens.ids for tokens in found.values())
    require_known(tokenizer, ids)
    return Encoded(
        TokenizedExamples(
            ids, tuple(tokens.labels for tokens in found.values()), tuple(_references(rows[row]) for row in found)
        ),
        np.array(list(found), np.int64),
        num_cut,
        len(rows) - len(found),
        () if encoder.complete else (LAST_ALONE,),
    )


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Turn] | str, options: EncodingOptions
) -> np.ndarray:
    """Token ids (length,) int64 of a chat where the next answer is to come: what stands before the answer in training. Of a text that
    is to be continued: its own.

    Raises:
        ModelError: the tokenizer is of the slow kind, or its chat template fails.
    """
    return _Encoder(tokenizer, options).prompt(prompt)


@dataclass(frozen=True)
class _Tokens:
    """An example: token ids (length,) int64, which of them are learnt (length,), and whether some were cut off."""

    ids: np.ndarray
    learnt: np.ndarray
    cut: bool = False

    @property
    def labels(self) -> np.ndarray:
        """(length,) int64."""
        labels = np.where(self.learnt, self.ids, IGNORED)
        labels[:1] = IGNORED
        return labels


class _Encoder:
    """One tokenizer with its template; remembers whether all answers were found."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, options: EncodingOptions) -> None:
        self._pieces = Pieces(tokenizer)
        self._format = ChatFormat(tokenizer, options.chat_template)
        self._options = options
        self.complete = True

    def one(self, sample: Sample) -> _Tokens:
        """An example at its length.

        Raises:
            DataError, ModelError: it cannot be rendered.
        """
        if sample.text is not None:
            return self._text(sample.text)
        rendered = self._format.render(with_system(sample.turns, self._options.system_prompt))
        self.complete &= rendered.complete
        return self._chat(rendered)

    def prompt(self, prompt: Sequence[Turn] | str) -> np.ndarray:
        """As `encode_prompt`."""
        if isinstance(prompt, str):
            return np.array(self._pieces.opened(self._pieces.split(prompt)[0]), np.int64)
        ids, _ = self._pieces.split(self._format.prompt(with_system(prompt, self._options.system_prompt)))
        return np.array(self._pieces.opened(ids) if self._format.joins else ids, np.int64)

    def _text(self, text: str) -> _Tokens:
        ids, end = self._pieces.opened(self._pieces.split(text)[0]), self._pieces.end
        ids = ids if ids[-1:] == [end] else [*ids, end]
        most = self._options.max_length
        return _Tokens(np.array(ids[:most], np.int64), np.ones(min(len(ids), most), bool), len(ids) > most)

    def _chat(self, rendered: Rendered) -> _Tokens:
        """A rendered chat, up to the end of its last answer."""
        ids, offsets, last = self._pieces.split_at(rendered.text, rendered.answers[-1].start)
        if not rendered.closed or not self._pieces.closes(ids[-1], rendered.text):
            ids, offsets = [*ids, self._pieces.end], [*offsets, (len(rendered.text), len(rendered.text) + 1)]
        starts = np.array([start for start, _ in offsets])
        learnt = np.zeros(len(ids), bool)
        for answer in rendered.answers[:-1]:
            learnt |= (starts >= answer.start) & (starts < answer.stop)
        learnt[last:] = True
        system = int(np.count_nonzero(starts < rendered.system))
        if self._format.joins:
            opened = self._pieces.opened(ids)
            added = len(opened) - len(ids)
            ids, learnt = opened, np.concatenate([np.zeros(added, bool), learnt])
            last, system = last + added, system + added
        if self._options.train_on == "all":
            learnt[:] = True
        return self._cut(np.array(ids, np.int64), learnt, last, max(system, self._pieces.count_opening(ids)))

    def _cut(self, ids: np.ndarray, learnt: np.ndarray, last: int, system: int) -> _Tokens:
        """At most `max_length` of the tokens; the answer starts at `last`, and `system` of them are worth to be kept in front."""
        most = self._options.max_length
        if len(ids) <= most:
            return _Tokens(ids, learnt)
        room = most - (len(ids) - last)
        if room < 1:
            raise DataError(
                f"its last answer has {len(ids) - last} tokens, and max-length = {most} leaves room for {most - 1} behind one of the "
                "prompt: choose a larger --max-length, or shorten it."
            )
        opening = self._pieces.count_opening(list(ids))
        kept = next((size for size in (system, opening) if 2 * size <= room), 0)
        rows = np.concatenate([np.arange(kept), np.arange(len(ids) - most + kept, len(ids))])
        learnt = learnt[rows]
        learnt[kept] = False  # what stood before it is gone
        return _Tokens(ids[rows], learnt, True)


def _references(sample: Sample) -> tuple[str, ...]:
    """The right answers of an example; none for plain text."""
    answers = [turn.content for turn in sample.turns if turn.role == ASSISTANT]
    return (*answers[-1:], *sample.references)
