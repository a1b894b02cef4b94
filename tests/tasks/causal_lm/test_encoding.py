"""What of a chat is learnt, with templates in the manners of well-known models."""

from __future__ import annotations

import numpy as np
import pytest
from chat_tokenizers import CHATML, ENDS, GEMMA, LAST_ONLY, SHOUTING, TEMPLATES, byte_level, sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_a2.data.written import Sample, Samples, Turn
from lora_a2.errors import DataError, ModelError
from lora_a2.tasks.base import EncodingOptions
from lora_a2.tasks.causal_lm.encoding import IGNORED, LAST_ALONE, encode, encode_prompt

OPTIONS = EncodingOptions(max_length=400)
BYTE_LEVEL = {name: byte_level(template) for name, template in TEMPLATES.items()}
PIECES = {name: sentencepiece(template) for name, template in TEMPLATES.items()}
TEXTS = st.text(st.sampled_from("abc eH?.17é你\n"), min_size=1, max_size=12).map(str.strip).filter(bool)
WORDS = st.text(st.sampled_from("Itakesfour dyC?"), min_size=1, max_size=14).map(
    lambda text: " ".join(text.split())
).filter(bool)  # fmt: skip


def pair(prompt: str, answer: str) -> Sample:
    return Sample((Turn("user", prompt), Turn("assistant", answer)))


def learnt(tokenizer: object, ids: np.ndarray, labels: np.ndarray) -> str:
    assert (labels[labels != IGNORED] == ids[labels != IGNORED]).all() and labels[0] == IGNORED
    return tokenizer.decode(ids[labels != IGNORED])  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=TEXTS, answer=TEXTS)
def test_the_answer_and_its_end_are_learnt(name: str, prompt: str, answer: str) -> None:
    tokenizer = BYTE_LEVEL[name]
    found = encode(tokenizer, [pair(prompt, answer)], OPTIONS)
    ids, labels = found.examples.input_ids[0], found.examples.labels[0]
    got = learnt(tokenizer, ids, labels)
    assert got.removeprefix("<think>\n\n</think>\n\n") == answer + ENDS[name]
    assert ids[-1] == tokenizer.convert_tokens_to_ids(ENDS[name]), "nothing stands behind the end"
    assert (found.num_cut, found.num_dropped, found.notes) == (0, 0, ())
    assert found.examples.references == ((answer,),)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("kind", ["bytes", "pieces"])
@settings(max_examples=25, deadline=None)
@given(prompt=WORDS, answer=WORDS)
def test_a_prompt_is_what_stands_before_the_answer_in_training(kind: str, name: str, prompt: str, answer: str) -> None:
    tokenizer = (BYTE_LEVEL if kind == "bytes" else PIECES)[name]
    found = encode(tokenizer, [pair(prompt, answer)], OPTIONS)
    ids, labels = found.examples.input_ids[0], found.examples.labels[0]
    asked = encode_prompt(tokenizer, [Turn("user", prompt)], OPTIONS)
    np.testing.assert_array_equal(asked, ids[: int(np.flatnonzero(labels != IGNORED)[0])])
    assert learnt(tokenizer, ids, labels).endswith(answer + ENDS[name])


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "endless"])
def test_every_turn_of_the_assistant_is_learnt(name: str) -> None:
    turns = ["Can I pay later?", "Yes, within 17 days.", "Yes?", "Yes, within 17 days."]
    sample = Sample(tuple(Turn(role, text) for role, text in zip(("user", "assistant") * 2, turns, strict=True)))
    tokenizer = BYTE_LEVEL[name]
    found = encode(tokenizer, [sample], OPTIONS)
    got = learnt(tokenizer, found.examples.input_ids[0], found.examples.labels[0])
    assert got.replace("<think>\n\n</think>\n\n", "") == 2 * ("Yes, within 17 days." + ENDS[name])
    assert found.notes == ()


def test_an_answer_that_the_prompt_quotes_is_found_where_it_is_given() -> None:
    for name, tokenizer in BYTE_LEVEL.items():
        found = encode(tokenizer, [pair("Is it four days? four days, or assistant: four days?", "four days")], OPTIONS)
        ids, labels = found.examples.input_ids[0], found.examples.labels[0]
        first = int(np.flatnonzero(labels != IGNORED)[0])
        assert (labels[first:] != IGNORED).all(), name
        assert learnt(tokenizer, ids, labels).endswith("four days" + ENDS[name])


def test_where_earlier_answers_cannot_be_told_the_last_alone_is_learnt_and_it_is_said() -> None:
    turns = [Turn("user", "a"), Turn("assistant", "first"), Turn("user", "b"), Turn("assistant", "second")]
    tokenizer = byte_level(LAST_ONLY)
    found = encode(tokenizer, [Sample(tuple(turns))], OPTIONS)
    assert found.notes == (LAST_ALONE,)
    assert learnt(tokenizer, found.examples.input_ids[0], found.examples.labels[0]) == "second<|im_end|>"


def test_a_template_that_changes_answers_is_refused() -> None:
    with pytest.raises(ModelError, match="cannot be told"):
        encode(byte_level(SHOUTING), [pair("a", "yes")], OPTIONS)


def test_a_template_that_fails_is_refused_in_one_line() -> None:
    sample = Sample((Turn("system", "be kind"), Turn("user", "a"), Turn("assistant", "b")))
    with pytest.raises(ModelError, match="System role not supported"):
        encode(byte_level(GEMMA), [sample], OPTIONS)
    with pytest.raises(ModelError, match="chat template") as caught:
        encode(byte_level(CHATML), [pair("a", "b")], EncodingOptions(400, chat_template="{% for %}"))
    assert "\n" not in str(caught.value)


def test_a_system_prompt_stands_in_front_unless_there_is_one() -> None:
    tokenizer = BYTE_LEVEL["chatml"]
    options = EncodingOptions(400, system_prompt="be kind")
    own = Sample((Turn("system", "be quick"), Turn("user", "a"), Turn("assistant", "b")))
    texts = [tokenizer.decode(ids) for ids in encode(tokenizer, [pair("a", "b"), own], options).examples.input_ids]
    assert texts[0].startswith("<|im_start|>system\nbe kind<|im_end|>")
    assert "be kind" not in texts[1] and "be quick" in texts[1]


def test_several_templates_need_a_usual_one() -> None:
    tokenizer = byte_level(None)
    tokenizer.chat_template = {"tool_use": CHATML, "default": CHATML}
    assert "<|im_start|>" in tokenizer.decode(encode(tokenizer, [pair("a", "b")], OPTIONS).examples.input_ids[0])
    tokenizer.chat_template = {"tool_use": CHATML}
    with pytest.raises(ModelError, match="tool_use"):
        encode(tokenizer, [pair("a", "b")], OPTIONS)


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("name", ["llama3", "none", "chatml"])
def test_the_beginning_stands_once_or_not_at_all(name: str, adds_bos: bool) -> None:
    """By the template, or, without one, by the tokenizer."""
    tokenizer = byte_level(TEMPLATES[name], adds_bos=adds_bos)
    ids = encode(tokenizer, [pair("a", "b")], OPTIONS).examples.input_ids[0]
    count = int((ids == tokenizer.bos_token_id).sum())
    assert count == {"llama3": 1, "none": int(adds_bos), "chatml": 0}[name]


def test_plain_text_is_learnt_as_a_whole_with_its_end() -> None:
    tokenizer = byte_level(CHATML, adds_bos=True)
    found = encode(tokenizer, [Sample(text="four days")], OPTIONS)
    ids, labels = found.examples.input_ids[0], found.examples.labels[0]
    assert tokenizer.decode(ids) == "<s>four days</s>"
    np.testing.assert_array_equal(labels[1:], ids[1:])
    assert found.examples.references == ((),)


def test_all_may_be_learnt() -> None:
    tokenizer = BYTE_LEVEL["chatml"]
    found = encode(tokenizer, [pair("how", "so")], EncodingOptions(400, train_on="all"))
    np.testing.assert_array_equal(found.examples.labels[0][1:], found.examples.input_ids[0][1:])


@given(most=st.integers(4, 60), adds_bos=st.booleans())
@settings(max_examples=40, deadline=None)
def test_what_is_cut_is_the_beginning_of_the_prompt(most: int, adds_bos: bool) -> None:
    tokenizer = byte_level(None, adds_bos=adds_bos)
    sample = pair("Can I pay later? Yes, within 17 days: write to us.", "four")
    whole = encode(tokenizer, [sample], OPTIONS).examples
    answer = int((whole.labels[0] != IGNORED).sum())
    if answer >= most:
        with pytest.raises(DataError, match=f"Example 1: its last answer has {answer} tokens, and max-length = {most}"):
            encode(tokenizer, [sample], EncodingOptions(most))
        return
    found = encode(tokenizer, [sample], EncodingOptions(most))
    ids, labels = found.examples.input_ids[0], found.examples.labels[0]
    assert len(ids) == min(most, len(whole.input_ids[0]))
    assert found.num_cut == (len(whole.input_ids[0]) > most)
    assert learnt(tokenizer, ids, labels) == "four</s>"
    if adds_bos and most > answer + 1:
        assert ids[0] == tokenizer.bos_token_id


def test_plain_text_loses_its_end() -> None:
    tokenizer = BYTE_LEVEL["none"]
    whole = encode(tokenizer, [Sample(text="It takes four days")], OPTIONS).examples.input_ids[0]
    found = encode(tokenizer, [Sample(text="It takes four days")], EncodingOptions(5))
    np.testing.assert_array_equal(found.examples.input_ids[0], whole[:5])
    assert found.num_cut == 1


def test_what_leaves_nothing_to_learn_is_dropped_and_counted() -> None:
    tokenizer = BYTE_LEVEL["none"]
    options = EncodingOptions(3)
    found = encode(tokenizer, [Sample(text="a"), Sample(text="It takes four")], options)
    assert found.num_dropped == 0
    lone = encode(tokenizer, [Sample(text="It"), Sample(text="")], EncodingOptions(1))
    assert (len(lone.examples), lone.num_dropped) == (0, 2)


@given(order=st.permutations(range(4)))
@settings(max_examples=10, deadline=None)
def test_each_example_is_encoded_for_itself(order: list[int]) -> None:
    tokenizer = BYTE_LEVEL["qwen3"]
    samples = Samples(tuple(pair(f"question {i}", "answer " * (i + 1)) for i in range(4)))
    rows = np.array(order)
    one, other = encode(tokenizer, samples.take(rows), OPTIONS).examples, encode(tokenizer, samples, OPTIONS).of(rows)
    for a, b in zip((*one.input_ids, *one.labels), (*other.input_ids, *other.labels), strict=True):
        np.testing.assert_array_equal(a, b)


def test_tokens_may_reach_from_the_prompt_into_the_answer() -> None:
    """ "\\n\\n" is one token of many vocabularies; a prompt that ends in one line break is asked without the answer's."""
    tokenizer = BYTE_LEVEL["none"]
    found = encode(tokenizer, [pair("Yes?", "\n\nfour days")], OPTIONS)
    asked = encode_prompt(tokenizer, [Turn("user", "Yes?")], OPTIONS)
    np.testing.assert_array_equal(found.examples.input_ids[0][: len(asked)], asked)
    assert learnt(tokenizer, found.examples.input_ids[0], found.examples.labels[0]) == "\n\nfour days</s>"
