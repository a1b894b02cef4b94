"""Chats and texts as token ids, and the label of each token: itself where it is learnt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_a2.data.written import Sample, Samples, Turn
from lora_a2.engine.work import TokenizedExamples
from lora_a2.errors import DataError, ModelError
from lora_a2.tasks.base import Encoded, EncodingOptions
from lora_a2.tasks.causal_lm.rendering import ASSISTANT, Rendered, chat_template, render, render_prompt, with_system
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
    An answer is learnt with what ends its turn. What is longer than `max_length` loses the beginning of its prompt (a token that
    opens every text stays), plain text its end. The first token is never learnt.

    Raises:
        DataError: an answer alone is longer than `max_length`; the message says which.
        ModelError: the tokenizer is of the slow kind, has no token for the end, does not know the texts, or its chat template fails.
    """
    rows = samples.samples if isinstance(samples, Samples) else tuple(samples)
    encoder = _Encoder(tokenizer, options)
    ids: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    kept: list[int] = []
    for row, sample in enumerate(rows):
        try:
            tokens, learnt = encoder.one(sample)
        except DataError as error:
            raise DataError(f"Example {row + 1}: {error}") from None
        if learnt[1:].any():
            kept.append(row)
            ids.append(tokens)
            labels.append(np.where(learnt, tokens, IGNORED))
            labels[-1][0] = IGNORED
    require_known(tokenizer, ids)
    references = tuple(_references(rows[row]) for row in kept)
    notes = (LAST_ALONE,) if encoder.incomplete else ()
    return Encoded(
        TokenizedExamples(tuple(ids), tuple(labels), references),
        np.array(kept, np.int64),
        encoder.num_cut,
        len(rows) - len(kept),
        notes,
    )


def encode_prompt(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], options: EncodingOptions) -> np.ndarray:
    """Token ids (length,) int64 of a chat where the next answer is to come: what stands before the answer in training.

    Raises:
        ModelError: the tokenizer is of the slow kind, or its chat template fails.
    """
    return _Encoder(tokenizer, options).prompt(turns)


class _Encoder:
    """One tokenizer with its template; counts what it cuts."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, options: EncodingOptions) -> None:
        if not tokenizer.is_fast:
            raise ModelError(
                f"The tokenizer is a {type(tokenizer).__name__}, which does not tell where its tokens stand in a text: give the "
                "model a fast one (tokenizer.json)."
            )
        if tokenizer.eos_token_id is None:
            raise ModelError("The tokenizer has no token for the end of a text (eos_token), which is to be learnt.")
        self._tokenizer, self._options = tokenizer, options
        self._template = chat_template(tokenizer, options.chat_template)
        self._opening = _opening(tokenizer)
        self._special = {int(i) for i in tokenizer.all_special_ids} | {
            int(i) for i, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        self.num_cut = 0
        self.incomplete = False

    def one(self, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        """Token ids (length,), and which of them are learnt.

        Raises:
            DataError: an answer alone is too long.
        """
        if sample.text is not None:
            return self._text(sample.text)
        rendered = render(self._tokenizer, with_system(sample.turns, self._options.system_prompt), self._template)
        self.incomplete |= not rendered.complete
        ids, learnt = self._chat(rendered)
        if self._options.train_on == "all":
            learnt = np.ones(len(ids), bool)
        return self._cut(ids, learnt)

    def prompt(self, turns: Sequence[Turn]) -> np.ndarray:
        """As `encode_prompt`."""
        given = with_system(turns, self._options.system_prompt)
        text = render_prompt(self._tokenizer, given, self._template)
        opening = [] if self._template is not None else self._opening
        return np.array([*opening, *self._tokens(text)[0]], np.int64)

    def _text(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        ids = [*self._opening, *self._tokens(text)[0], self._end]
        most = self._options.max_length
        self.num_cut += len(ids) > most
        return np.array(ids[:most], np.int64), np.ones(min(len(ids), most), bool)

    @property
    def _end(self) -> int:
        return int(self._tokenizer.eos_token_id)

    def _chat(self, rendered: Rendered) -> tuple[list[int], np.ndarray]:
        """All tokens of a rendered chat, and which belong to answers."""
        start = rendered.spans[-1][0]
        ids, offsets = self._tokens(rendered.text)
        head = self._tokens(rendered.text[:start])[0]
        if ids[: len(head)] != head or (len(offsets) > len(head) and offsets[len(head)][0] < start):
            # A token reaches from the prompt into the answer. Whoever asks the model has the prompt alone, so it is cut there.
            tail, places = self._tokens(rendered.text[start:])
            ids = [*head, *tail]
            offsets = [*offsets[: len(head)], *((s + start, e + start) for s, e in places)]
            offsets[: len(head)] = self._tokens(rendered.text[:start])[1]
        learnt = np.zeros(len(ids), bool)
        for first, end in rendered.spans:
            inside = [i for i, (s, _) in enumerate(offsets) if first <= s < end]
            learnt[inside] = True
            behind = inside[-1] + 1 if inside else len(ids)
            closing = next((i for i in range(behind, len(ids)) if ids[i] in self._special), None)
            gap = rendered.text[end : offsets[closing][0]] if closing is not None else ""
            if closing is not None and not gap.strip():
                learnt[behind : closing + 1] = True
        if not self._ends(ids, learnt):
            last = np.flatnonzero(learnt)
            keep = int(last[-1]) + 1 if len(last) else len(ids)
            ids, learnt = [*ids[:keep], self._end], np.append(learnt[:keep], True)
        if rendered.joined and self._opening:
            ids, learnt = [*self._opening, *ids], np.concatenate([np.zeros(len(self._opening), bool), learnt])
        return ids, learnt

    def _ends(self, ids: Sequence[int], learnt: np.ndarray) -> bool:
        """Whether the last thing learnt is the end of a turn."""
        last = np.flatnonzero(learnt)
        return len(last) > 0 and ids[int(last[-1])] in self._special

    def _cut(self, ids: list[int], learnt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        tokens, most = np.array(ids, np.int64), self._options.max_length
        places = np.flatnonzero(learnt)
        end = int(places[-1]) + 1 if len(places) else len(tokens)
        tokens, learnt = tokens[:end], learnt[:end]  # what follows the last answer is neither read nor learnt
        if len(tokens) <= most:
            return tokens, learnt
        answer = len(tokens) - _last_run(learnt) if self._options.train_on == "completion" else 0
        if answer >= most:
            raise DataError(
                f"its answer alone has {answer} tokens, and max-length = {most} leaves room for {most - 1} behind one of the prompt: "
                "choose a larger --max-length, or shorten it."
            )
        self.num_cut += 1
        kept = len(self._opening) if list(tokens[: len(self._opening)]) == self._opening else 0
        kept = kept if kept + answer < most else 0
        tail = most - kept
        return (
            np.concatenate([tokens[:kept], tokens[-tail:]]),
            np.concatenate([learnt[:kept], learnt[-tail:]]),
        )

    def _tokens(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of a text and where each stands in it; nothing is added."""
        given: Any = self._tokenizer
        found = given(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(found["input_ids"]), [tuple(pair) for pair in found["offset_mapping"]]


def _opening(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts before every text, such as the token for its beginning."""
    with_all = list(tokenizer("a")["input_ids"])
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    for start in range(len(with_all) - len(bare) + 1):
        if with_all[start : start + len(bare)] == bare:
            return with_all[:start]
    return []


def _last_run(learnt: np.ndarray) -> int:
    """Where the last stretch of learnt tokens begins."""
    outside = np.flatnonzero(~learnt)
    return int(outside[-1]) + 1 if len(outside) else 0


def _references(sample: Sample) -> tuple[str, ...]:
    """The right answers of an example; none for plain text."""
    answers = [turn.content for turn in sample.turns if turn.role == ASSISTANT]
    return (*answers[-1:], *sample.references)
