"""A chat as one text, and which of its characters are learnt.

A template says neither, and the first turns rendered alone need not be how the whole begins: some put an end behind the last turn
only, a block of reasoning before the last answer, or the system prompt before the last question. So the whole is rendered once, and
again with a mark in the place of an answer: all around the mark is the template's. What it puts where an answer is to come, its
generation prompt, tells where one starts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, pairwise
from typing import TYPE_CHECKING, Any

from lora_a2.data.written import Turn
from lora_a2.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BETWEEN = "\n"
"""Between the turns of a chat that is joined without a template."""
ASSISTANT, SYSTEM = "assistant", "system"


@dataclass(frozen=True)
class Answer:
    """Characters of a rendered chat that are learnt.

    Attributes:
        start: where the generation prompt ends; what the template puts between it and the answer is learnt too.
        end: where the answer ends.
        stop: behind the token that ends the turn; `end` if there is none.
    """

    start: int
    end: int
    stop: int


@dataclass(frozen=True)
class Rendered:
    """A chat as text, up to the end of its last answer.

    Attributes:
        text: the whole.
        answers: those that are learnt, in order.
        complete: whether these are all answers; else the last alone.
        system: how many characters at the beginning are the system's turn; 0 if it has none of its own.
    """

    text: str
    answers: tuple[Answer, ...]
    complete: bool
    system: int

    @property
    def closed(self) -> bool:
        """Whether the template ends the last answer."""
        return self.answers[-1].stop > self.answers[-1].end


def with_system(turns: Sequence[Turn], system_prompt: str | None) -> tuple[Turn, ...]:
    """The turns behind a system prompt, unless they have one of their own."""
    if system_prompt is None or any(turn.role == SYSTEM for turn in turns):
        return tuple(turns)
    return (Turn(SYSTEM, system_prompt), *turns)


class ChatFormat:
    """How a tokenizer, by its chat template or the given one, writes chats; without any, turns are joined by line breaks, with the
    end of text behind each answer.

    Raises:
        ModelError: the tokenizer has several templates, and none that is the usual one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str | None = None) -> None:
        self._tokenizer: Any = tokenizer
        self._template = template or _own_template(tokenizer.chat_template)
        added = {token.content for token in tokenizer.added_tokens_decoder.values()}
        self._ends = sorted(
            {end for end in (*added, tokenizer.eos_token) if end and end.strip()}, key=len, reverse=True
        )

    @property
    def joins(self) -> bool:
        """Whether there is no template."""
        return self._template is None

    def prompt(self, turns: Sequence[Turn]) -> str:
        """A chat as it stands where the next answer is to come.

        Raises:
            ModelError: the template fails.
        """
        return self._write(turns, True)

    def render(self, turns: Sequence[Turn]) -> Rendered:
        """A chat up to its last answer.

        Raises:
            ModelError: the template fails, or where the last answer stands cannot be told.
            DataError: there is no answer.
        """
        last = max((i for i, turn in enumerate(turns) if turn.role == ASSISTANT), default=-1)
        if last < 0:
            raise DataError("A chat has no turn of the assistant, so that there is nothing to learn.")
        turns = turns[: last + 1]
        whole = self._write(turns, False)
        final = self._answer(turns, last, whole, None)
        if final is None:
            raise ModelError(
                "Where the chat template puts the last answer cannot be told, as it changes it or leaves it out: give another with "
                "--chat-template FILE."
            )
        end = whole[final.end : final.stop].strip()
        numbers = [i for i, turn in enumerate(turns) if turn.role == ASSISTANT]
        earlier = [self._answer(turns, i, whole, end) for i in numbers[:-1]]
        found = [answer for answer in earlier if answer is not None]
        ordered = all(a.stop <= b.start for a, b in pairwise([*found, final]))
        complete = len(found) == len(earlier) and ordered
        answers = (*found, final) if complete else (final,)
        return Rendered(whole[: final.stop], answers, complete, self._system(turns, whole))

    def _write(self, turns: Sequence[Turn], prompt: bool) -> str:
        if self._template is None:
            return self._joined(turns, prompt)
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    messages, chat_template=self._template, tokenize=False, add_generation_prompt=prompt
                )
            )
        except Exception as error:  # whatever a template raises
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ModelError(f"The chat template cannot render a chat: {reason[:200]}") from error

    def _joined(self, turns: Sequence[Turn], prompt: bool) -> str:
        eos = self._tokenizer.eos_token or ""
        pieces = [turn.content + (eos if turn.role == ASSISTANT else "") for turn in turns]
        return BETWEEN.join([*pieces, ""] if prompt else pieces)

    def _attempt(self, turns: Sequence[Turn], prompt: bool) -> str | None:
        """None: the template does not take these turns alone."""
        if not turns:
            return None
        try:
            return self._write(turns, prompt)
        except ModelError:
            return None

    def _answer(self, turns: Sequence[Turn], i: int, whole: str, expected: str | None) -> Answer | None:
        """Where the answer of turn `i` stands in the whole; None: it cannot be told.

        The token behind it ends it if it is the `expected` one or the end of text; None: whichever it is.
        """
        around = self._around(turns, (i,), False, whole)
        if around is None or not whole.endswith(around[1]):
            return None
        end = len(whole) - len(around[1])
        start = self._start(turns, i, whole, around[0])
        if start is None or start > end or not _ends_with(whole[:end], turns[i].content):
            return None
        behind = around[1].lstrip()
        gap = len(around[1]) - len(behind)
        closing = next((token for token in self._ends if behind.startswith(token)), "")
        if expected is not None and closing not in (expected, self._tokenizer.eos_token):
            closing = ""  # the next turn's beginning, not this one's end
        return Answer(start, end, end + gap + len(closing) if closing else end)

    def _start(self, turns: Sequence[Turn], i: int, whole: str, before: str) -> int | None:
        """Where the generation prompt of turn `i` ends, `before` being all that stands before its answer."""
        asked = self._attempt(turns[:i], True)
        if asked is None:
            return len(before) if i == 0 and whole.startswith(before) else None
        if whole.startswith(asked):
            return len(asked)
        # The turns so far are written otherwise alone. What stands between the turn before and the answer is compared.
        marked = self._around(turns[:i], (i - 1,), True, whole)
        between = self._around(turns, (i - 1, i), False, whole)
        if marked is None or between is None or not whole.startswith(before) or not between[1].startswith(marked[1]):
            return None
        return len(before) - len(between[1]) + len(marked[1])

    def _around(self, turns: Sequence[Turn], places: Sequence[int], prompt: bool, whole: str) -> list[str] | None:
        """The chat with a mark in the place of these turns' contents, split there; None: the template does not show each once."""
        marks = [_mark(whole, number) for number in range(len(places))]
        marked = dict(zip(places, marks, strict=True))
        written = self._attempt(
            [replace(turn, content=marked.get(i, turn.content)) for i, turn in enumerate(turns)], prompt
        )
        pieces = [] if written is None else [written]
        for mark in marks:
            pieces = [*pieces[:-1], *pieces[-1].split(mark)] if pieces else []
        return pieces if len(pieces) == len(places) + 1 else None

    def _system(self, turns: Sequence[Turn], whole: str) -> int:
        """How many characters are a system turn of its own: its content, with a token that ends it."""
        if turns[0].role != SYSTEM:
            return 0
        around = self._around(turns, (0,), False, whole)
        if around is None or not whole.endswith(around[1]):
            return 0
        end = len(whole) - len(around[1])
        if self.joins:
            return end + len(BETWEEN)
        behind = around[1].lstrip()
        closing = next((token for token in self._ends if behind.startswith(token)), "")
        return len(whole) - len(behind) + len(closing) if closing else 0


def _own_template(own: str | Mapping[str, str] | None) -> str | None:
    if not isinstance(own, Mapping):
        return own or None
    if "default" not in own:
        raise ModelError(
            f"The tokenizer has the chat templates {', '.join(own)} and no default: give one with --chat-template FILE."
        )
    return own["default"]


def _mark(whole: str, number: int) -> str:
    """Letters that stand nowhere in a text."""
    return next(mark for i in count() if (mark := f"Mark{number}x{i}z") not in whole)


def _ends_with(text: str, content: str) -> bool:
    """Whether a text ends with a content, blanks apart: templates strip and break lines."""
    if text.endswith((content, content.strip())):
        return True
    return "".join(text.split()).endswith("".join(content.split()))
