"""An example as it is shown is an example as it is learnt."""

from __future__ import annotations

import json

import numpy as np
import pytest
from chat_styles import WANDERING
from chat_tokenizers import TEMPLATES, byte_level, sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_a2.data.written import Sample, Turn
from lora_a2.errors import DataError
from lora_a2.tasks.base import EncodingOptions
from lora_a2.tasks.causal_lm.encoding import IGNORED, encode
from lora_a2.tasks.causal_lm.showing import CLOSES, OPENS, describe_example, example_values

OPTIONS = EncodingOptions(400)
TOKENIZERS = {name: byte_level(template) for name, template in {**TEMPLATES, "wandering": WANDERING}.items()}
TEXTS = st.text(st.sampled_from("abc H?.17é你"), min_size=1, max_size=8).map(str.strip).filter(bool)


def pair(prompt: str, answer: str) -> Sample:
    return Sample((Turn("user", prompt), Turn("assistant", answer)))


def test_what_is_learnt_is_marked() -> None:
    shown = describe_example(TOKENIZERS["chatml"], encode(TOKENIZERS["chatml"], [pair("a", "yes")], OPTIONS), 0)
    assert shown == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n⟦yes<|im_end|>⟧"
    pieces = sentencepiece(WANDERING)
    assert describe_example(pieces, encode(pieces, [pair("t", "it")], OPTIONS), 0).endswith("⟦ it</s>⟧")


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=10, deadline=None)
@given(turns=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3))
def test_without_the_marks_it_is_the_text_and_inside_them_what_is_learnt(
    name: str, turns: list[tuple[str, str]]
) -> None:
    tokenizer = TOKENIZERS[name]
    sample = Sample(tuple(turn for own in turns for turn in pair(*own).turns))
    found = encode(tokenizer, [sample], OPTIONS)
    ids, labels = found.examples.input_ids[0], found.examples.labels[0]
    shown = describe_example(tokenizer, found, 0)
    assert shown.replace(OPENS, "").replace(CLOSES, "") == tokenizer.decode(ids)
    inside = [part.split(CLOSES)[0] for part in shown.split(OPENS)[1:]]
    assert "".join(inside) == tokenizer.decode(ids[labels != IGNORED])
    values = json.loads(json.dumps(example_values(tokenizer, found, 0)))
    assert values["input_ids"] == ids.tolist() and values["text"] == tokenizer.decode(ids)
    assert values["learnt"] == np.flatnonzero(labels != IGNORED).tolist() and len(values["tokens"]) == len(ids)


def test_no_terminal_is_sent_what_moves_its_cursor() -> None:
    tokenizer = TOKENIZERS["none"]
    shown = describe_example(tokenizer, encode(tokenizer, [pair("a\x1b[2J", "b")], OPTIONS), 0)
    assert "\x1b" not in shown and "\\x1b[2J" in shown


def test_a_cut_character_is_shown_as_broken() -> None:
    tokenizer = TOKENIZERS["none"]
    found = encode(tokenizer, [pair("你" * 9, "b")], EncodingOptions(6))
    assert found.num_cut == 1 and describe_example(tokenizer, found, 0).endswith("⟦b</s>⟧")


def test_examples_are_numbered_as_given_and_a_dropped_one_is_none() -> None:
    tokenizer = TOKENIZERS["none"]
    found = encode(tokenizer, [Sample(text=""), pair("a", "yes")], OPTIONS)
    assert "yes" in describe_example(tokenizer, found, 1)
    with pytest.raises(DataError, match="Example 1 was dropped"):
        describe_example(tokenizer, found, 0)
    for index in (2, -1):
        with pytest.raises(DataError, match=f"no example {index + 1}: there are 2"):
            example_values(tokenizer, found, index)
