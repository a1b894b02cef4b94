"""What the columns of a table are for a model that writes, and its rows as chats and texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lora_a2.data.columns import LABEL_COLUMNS, TEXT_COLUMNS, listed, one_column, opening, require
from lora_a2.data.messages import plain, read_chat
from lora_a2.data.tables import AnyTable
from lora_a2.data.written import Sample, Turn
from lora_a2.errors import DataError
from lora_a2.settings.task import CAUSAL_LM, CLASSIFICATION

MESSAGES_COLUMNS = ("messages", "conversations", "conversation", "chat")
PAIRS = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("input", "output"))
"""Usual names of a prompt and its answer, by preference; `instruction` and `output` come before the last."""
INSTRUCTION, INSTRUCTION_INPUT = "instruction", "input"
ANSWERS = ("output", "response", "completion", "answer")
REFERENCES = "references"


@dataclass(frozen=True)
class WrittenColumns:
    """Names of the columns that are used: messages, or a text, or a completion with its prompt."""

    messages: str | None = None
    text: str | None = None
    prompt: str | None = None
    prompt_input: str | None = None
    completion: str | None = None
    references: str | None = None
    client: str | None = None

    def named(self) -> dict[str, str]:
        """Role → name, of those that there are."""
        found = {
            "chat": self.messages,
            "text": self.text,
            "prompt": self.prompt,
            "input": self.prompt_input,
            "answer": self.completion,
            "references": self.references,
            "client": self.client,
        }
        return {role: name for role, name in found.items() if name is not None}

    def needed(self) -> dict[str, str]:
        """As `named`, of those that no row may lack."""
        return {role: name for role, name in self.named().items() if role not in ("input", "references")}


def find_task(names: Sequence[str]) -> str | None:
    """The task that a table's columns are for, where it is clear: None if they have no usual names, or have a text and no label."""
    known = {name.strip().lower() for name in names}
    labelled = any(known & set(group) for group in LABEL_COLUMNS)
    texts = any(known & set(group) for group in TEXT_COLUMNS)
    if known & set(MESSAGES_COLUMNS) or ({INSTRUCTION} < known and known & set(ANSWERS)):
        return CAUSAL_LM
    if REFERENCES in known and known & {prompt for prompt, _ in PAIRS}:
        return CAUSAL_LM
    if labelled and texts:
        return CLASSIFICATION
    if any(set(pair) <= known for pair in PAIRS):
        return CAUSAL_LM
    return CLASSIFICATION if labelled else None


def find_written_columns(
    names: Sequence[str],
    source: str,
    *,
    messages: str | None = None,
    text: str | None = None,
    prompt: str | None = None,
    completion: str | None = None,
    references: str | None = None,
    client: str | None = None,
) -> WrittenColumns:
    """The columns of a table with these `names`: as named by the user, else by the usual names (case is ignored).

    Raises:
        DataError: a column named by the user is missing, roles exclude each other, or no usual names are there.
    """
    for name in (messages, text, prompt, completion, references, client):
        if name is not None:
            require(name, names, source)
    given = [role for role, name in (("messages", messages), ("text", text), ("completion", completion)) if name]
    if len(given) > 1 or (prompt is not None and given in (["messages"], ["text"])):
        raise DataError(
            f"{' and '.join(f'--{role}-column' for role in given)}{' and --prompt-column' if prompt else ''} exclude each other: "
            "give the column of chats, of plain texts, or of prompts and answers."
        )
    by_name = {name.strip().lower(): name for name in names if name != client}
    references = references or by_name.get(REFERENCES)
    if messages is None and text is None and completion is None and prompt is None:
        found = _usual(by_name)
        if found is None:
            raise DataError(
                f"Which columns of {source} are prompts and answers, chats or texts cannot be told from its columns {listed(names)}; "
                f"name them with --prompt-column and --completion-column, --messages-column, or --text-column{one_column(names)}."
            )
        messages, text, prompt, prompt_input, completion = found
        return WrittenColumns(messages, text, prompt, prompt_input, completion, references, client)
    if prompt is not None and completion is None:
        completion = next((by_name[name] for name in ANSWERS if by_name.get(name) not in (None, prompt)), None)
        if completion is None and references is None:
            raise DataError(
                f"{opening(source)} has no usual column of answers among {listed(names)}; name it with --completion-column."
            )
    if completion is not None and prompt is None:
        prompt = next((by_name[name] for name in (INSTRUCTION, *(p for p, _ in PAIRS)) if name in by_name), None)
        if prompt is None or prompt == completion:
            raise DataError(
                f"{opening(source)} has no usual column of prompts among {listed(names)}; name it with --prompt-column."
            )
    added = by_name.get(INSTRUCTION_INPUT) if prompt is not None and prompt.strip().lower() == INSTRUCTION else None
    return WrittenColumns(
        messages, text, prompt, added if added != completion else None, completion or references, references, client
    )


def _usual(by_name: Mapping[str, str]) -> tuple[str | None, str | None, str | None, str | None, str | None] | None:
    """Messages, text, prompt, its input, completion."""
    for name in MESSAGES_COLUMNS:
        if name in by_name:
            return by_name[name], None, None, None, None
    answer = next((by_name[name] for name in ANSWERS if name in by_name), None)
    if INSTRUCTION in by_name and answer is not None:
        return None, None, by_name[INSTRUCTION], by_name.get(INSTRUCTION_INPUT), answer
    for prompt, completion in PAIRS:
        if prompt in by_name and completion in by_name:
            return None, None, by_name[prompt], None, by_name[completion]
    if "input" in by_name and REFERENCES in by_name:
        return None, None, by_name["input"], None, by_name[REFERENCES]
    for group in TEXT_COLUMNS:
        found = [by_name[name] for name in group if name in by_name]
        if len(found) == 1:
            return None, found[0], None, None, None
    return None


def read_samples(table: AnyTable, columns: WrittenColumns) -> list[Sample]:
    """The rows of a table, none of which lacks what is needed.

    Raises:
        DataError: a row is no valid example; the message says which, and why.
    """
    for name in (columns.messages, columns.text, columns.prompt, columns.prompt_input, columns.completion):
        if name is not None:
            require(name, table.names, table.source)
    references = _references(table, columns)
    if columns.messages is not None:
        rows = enumerate(table.column(columns.messages), start=1)
        turns = [read_chat(value, table.place(row)) for row, value in rows]
        return [Sample(own, references=r) for own, r in zip(turns, references, strict=True)]
    if columns.text is not None:
        return [Sample(text=text) for text in _texts(table, columns.text)]
    assert columns.prompt is not None and columns.completion is not None, "found together"
    prompts = _texts(table, columns.prompt)
    if columns.prompt_input is not None:
        extra = _texts(table, columns.prompt_input, optional=True)
        prompts = [f"{p}\n\n{e}" if e.strip() else p for p, e in zip(prompts, extra, strict=True)]
    answers = _answers(table, columns.completion)
    return [
        Sample((Turn("user", prompt), Turn("assistant", own[0])), references=(*own[1:], *others))
        for prompt, own, others in zip(prompts, answers, references, strict=True)
    ]


def _references(table: AnyTable, columns: WrittenColumns) -> list[tuple[str, ...]]:
    name = columns.references
    if name is None or name == columns.completion or name not in table.names:
        return [()] * len(table.column(table.names[0]))
    values = table.column(name)
    return [
        () if value is None else _list_of_texts(value, table.place(row), name) for row, value in enumerate(values, 1)
    ]


def _answers(table: AnyTable, column: str) -> list[tuple[str, ...]]:
    """Each row's answers, the first of which is learnt."""
    return [_list_of_texts(value, table.place(row), column) for row, value in enumerate(table.column(column), start=1)]


def _list_of_texts(value: object, place: str, column: str) -> tuple[str, ...]:
    if value is None:
        return ()
    values = [value] if isinstance(value, str) else plain(value)
    if isinstance(values, Sequence) and all(isinstance(each, str) for each in values):
        return tuple(values)
    raise DataError(f"{place} holds {str(value)[:40]} in column '{column}': expected a text, or a list of texts.")


def _texts(table: AnyTable, column: str, *, optional: bool = False) -> list[str]:
    """The texts of a column; an `optional` one may be missing or empty, and is "" then."""
    texts = ["" if text is None and optional else text for text in table.column(column)]
    for row, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            more = " Whole chats are named with --messages-column." if isinstance(plain(text), list) else ""
            raise DataError(
                f"{table.place(row)} has a {type(text).__name__}, not a text, in column '{column}'; fill it, or name another "
                f"column.{more}"
            )
    return texts
