"""A chat as one text, and which of its characters are learnt.

A template says neither, and the first turns rendered alone need not be how the whole begins: some put an end behind the last turn
only, or a block of reasoning before the last answer. So the whole is rendered, and once more with a mark in the place of an answer.
What a template puts where an answer is to come, its generation prompt, tells where learning starts; the mark tells where the answer
ends, and the first special token behind it ends the turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lora_a2.data.written import Turn
from lora_a2.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BETWEEN = "\n"
"""Between the turns of a chat that is joined without a template."""
ASSISTANT = "assistant"
MARK = "\ue000answer\ue001"
"""Stands in for an answer: characters for private use, which no text has."""


@dataclass(frozen=True)
class Rendered:
    """A chat as text.

    Attributes:
        text: the whole.
        spans: (start, end) in characters of each answer that is learnt, without what ends the turn.
        complete: whether these are all answers; else the last alone.
        joined: whether it was made without a template.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    complete: bool
    joined: bool


def chat_template(tokenizer: PreTrainedTokenizerBase, given: str | None) -> str | None:
    """The template that is used; None: there is none, and turns are joined.

    Raises:
        ModelError: the tokenizer has several, and none that is the usual one.
    """
    own = given or tokenizer.chat_template
    if isinstance(own, dict):
        if "default" not in own:
            raise ModelError(
                f"The tokenizer has the chat templates {', '.join(own)} and no default: give one with --chat-template FILE."
            )
        own = own["default"]
    return str(own) if own else None


def with_system(turns: Sequence[Turn], system_prompt: str | None) -> tuple[Turn, ...]:
    """The turns behind a system prompt, unless they have one of their own."""
    if system_prompt is None or any(turn.role == "system" for turn in turns):
        return tuple(turns)
    return (Turn("system", system_prompt), *turns)


def render(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], template: str | None) -> Rendered:
    """A chat up to its last answer.

    Raises:
        ModelError: the template fails, or where the last answer stands cannot be told.
        DataError: there is no answer.
    """
    last = max((i for i, turn in enumerate(turns) if turn.role == ASSISTANT), default=-1)
    if last < 0:
        raise DataError("A chat has no turn of the assistant, so that there is nothing to learn.")
    turns = turns[: last + 1]
    if template is None:
        return _joined(tokenizer, turns)
    whole = _applied(tokenizer, turns, template, False)
    spans = [_find(tokenizer, turns, i, template, whole) for i, turn in enumerate(turns) if turn.role == ASSISTANT]
    if spans[-1] is None:
        raise ModelError(
            "Where the chat template puts the last answer cannot be told, as it changes it or shows no generation prompt: give "
            "another with --chat-template FILE."
        )
    complete = None not in spans
    known = tuple(span for span in spans if span is not None) if complete else (spans[-1],)
    return Rendered(whole, known, complete, joined=False)


def render_prompt(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], template: str | None) -> str:
    """A chat as it stands where the next answer is to come.

    Raises:
        ModelError: the template fails.
    """
    if template is not None:
        return _applied(tokenizer, turns, template, True)
    return "".join(_piece(tokenizer, turn) for turn in turns)


def _joined(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn]) -> Rendered:
    text, spans = "", []
    for turn in turns:
        if turn.role == ASSISTANT:
            spans.append((len(text), len(text) + len(turn.content)))
        text += _piece(tokenizer, turn)
    return Rendered(text.removesuffix(BETWEEN), tuple(spans), True, joined=True)


def _piece(tokenizer: PreTrainedTokenizerBase, turn: Turn) -> str:
    end = str(tokenizer.eos_token or "") if turn.role == ASSISTANT else ""
    return f"{turn.content}{end}{BETWEEN}"


def _applied(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], template: str, prompt: bool) -> str:
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    given: Any = tokenizer
    try:
        return str(
            given.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=prompt)
        )
    except Exception as error:  # whatever a template raises
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(f"The chat template cannot render a chat: {reason[:200]}") from error


def _find(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], i: int, template: str, whole: str
) -> tuple[int, int] | None:
    """Where the answer of turn `i` stands in the whole; None: it cannot be told.

    The chat is rendered once more with a mark in the answer's place: all else stays, or the template changes answers.
    """
    marked = _attempt(tokenizer, [*turns[:i], replace(turns[i], content=MARK), *turns[i + 1 :]], template, False)
    content = turns[i].content.strip()
    if marked is None or marked.count(MARK) != 1:
        return None
    place = marked.index(MARK)
    if marked.replace(MARK, turns[i].content) != whole and marked.replace(MARK, content) != whole:
        return None
    place = whole.index(content, place)  # blanks of the answer may stand before it
    before = _attempt(tokenizer, turns[:i], template, True)
    if before is not None and whole.startswith(before) and len(before) <= place:
        return len(before), place + len(content)
    header = _header(tokenizer, turns[:i], template, before)
    start = -1 if header is None else whole.rfind(header, 0, place)
    return None if header is None or start < 0 else (start + len(header), place + len(content))


def _attempt(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], template: str, prompt: bool) -> str | None:
    """None: the template does not take the turns so far alone."""
    if not turns:
        return None
    try:
        return _applied(tokenizer, turns, template, prompt)
    except ModelError:
        return None


def _header(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], template: str, before: str | None) -> str | None:
    """The generation prompt alone."""
    plain = _attempt(tokenizer, turns, template, False)
    if before is None or plain is None or not before.startswith(plain) or len(before) == len(plain):
        return None
    return before[len(plain) :]
