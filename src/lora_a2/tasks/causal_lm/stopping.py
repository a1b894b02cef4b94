"""Where an answer ends: the tokens that stop it, and the positions that a model has."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from jinja2 import TemplateError
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

_ANSWER = "answer1"


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Every token id that ends an answer: those of the model's generation config and config, the tokenizer's end of text, and
    what ends an answer in its chat template. Ascending; only ids that the model can write."""
    configs = (model.generation_config, model.config, model.config.get_text_config())
    named = [_ids(getattr(config, "eos_token_id", None)) for config in configs]
    own = (tokenizer.eos_token_id, _end_of_turn(tokenizer))
    found = {i for ids in (*named, *map(_ids, own)) for i in ids}
    return tuple(sorted(i for i in found if 0 <= i < vocabulary_size(model)))


def vocabulary_size(model: PreTrainedModel) -> int:
    """The number of tokens that the model can write."""
    head: nn.Linear | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    size = model.config.get_text_config().vocab_size if head is None else head.out_features
    return int(size)


def positions(model: PreTrainedModel) -> int | None:
    """Tokens, of prompt and answer together, for which the model has positions; None if it counts without end."""
    config = model.config.get_text_config()
    stated = [getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len")]
    tables = [
        table.num_embeddings - table.padding_idx - 1  # RoBERTa counts from behind the index of padding
        for name, table in model.named_modules()
        if isinstance(table, nn.Embedding)
        and table.padding_idx is not None
        and re.search(r"position_embeddings$|embed_positions$|wpe$", name)
    ]
    return min([n for n in stated if isinstance(n, int) and n > 0] + tables, default=None)


def _ids(value: Any) -> Iterable[int]:
    """None, one id or several."""
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that stands behind an answer in the chat template; None if there is no template, or it puts text there.

    It need not be the end of text: Gemma ends turns in <end_of_turn>, Llama 3 in <|eot_id|>.
    """
    if not tokenizer.chat_template:
        return None
    chat = [{"role": "user", "content": "question"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = str(tokenizer.apply_chat_template(chat, tokenize=False))
    except (
        TemplateError,
        ValueError,
    ):  # one that wants other roles, or is one of several: whoever renders prompts says so
        return None
    behind = text.rpartition(_ANSWER)[2].lstrip() if _ANSWER in text else ""
    added = {token.content: i for i, token in tokenizer.added_tokens_decoder.items()}
    fitting = [content for content in added if content.strip() and behind.startswith(content)]
    return added[max(fitting, key=len)] if fitting else None
