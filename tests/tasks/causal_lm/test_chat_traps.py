"""Templates and tokenizers by which parts of prompts have been learnt elsewhere, or parts of answers not."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_styles import CHANGING, HARMONY, HEADED, INSTRUCTIONS, REASONING, SPACED, WANDERING
from chat_tokenizers import CHATML, PHI3, TEMPLATES, byte_level, sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lora_a2.data.written import Sample, Turn
from lora_a2.errors import DataError, LoraA2Error, ModelError
from lora_a2.tasks.base import EncodingOptions
from lora_a2.tasks.causal_lm.encoding import IGNORED, LAST_ALONE, encode, encode_prompt
from lora_a2.tasks.causal_lm.stopping import stop_ids

OPTIONS = EncodingOptions(max_length=500)
STYLES = {
    **TEMPLATES,
    "reasoning": REASONING,
    "wandering": WANDERING,
    "headed": HEADED,
    "instructions": INSTRUCTIONS,
    "spaced": SPACED,
}
BYTES = {name: byte_level(template) for name, template in STYLES.items()}
PIECES = {name: sentencepiece(template) for name, template in STYLES.items()}


def chat(*contents: str, system: str | None = None) -> tuple[Turn, ...]:
    """Question and answer by turns."""
    roles = ("user", "assistant") * len(contents)
    first = () if system is None else (Turn("system", system),)
    return (*first, *(Turn(role, content) for role, content in zip(roles, contents, strict=False)))


def arrays(
    tokenizer: Any, turns: Sequence[Turn], options: EncodingOptions = OPTIONS
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    found = encode(tokenizer, [Sample(tuple(turns))], options)
    return found.examples.input_ids[0], found.examples.labels[0], found.notes


def runs(tokenizer: Any, ids: np.ndarray, labels: np.ndarray) -> list[str]:
    """The text of each stretch that is learnt."""
    learnt = np.flatnonzero(labels != IGNORED)
    np.testing.assert_array_equal(labels[learnt], ids[learnt])
    parts = np.split(learnt, np.flatnonzero(np.diff(learnt) > 1) + 1)
    return [tokenizer.decode(ids[part]) for part in parts]


def learnt(tokenizer: Any, turns: Sequence[Turn]) -> list[str]:
    return runs(tokenizer, *arrays(tokenizer, turns)[:2])


def test_reasoning_is_learnt_as_the_template_writes_it() -> None:
    turns = chat("a", "<think>hm, well</think>yes")
    assert learnt(BYTES["reasoning"], turns) == ["<think>\nhm, well\n</think>\n\nyes<|im_end|>"]


def test_an_earlier_answer_whose_reasoning_the_template_drops_is_not_learnt() -> None:
    """Its prompt would have asked for the reasoning."""
    tokenizer, turns = BYTES["reasoning"], chat("a", "<think>hm</think>yes", "b", "no")
    ids, labels, notes = arrays(tokenizer, turns)
    assert runs(tokenizer, ids, labels) == ["<think>\n\n</think>\n\nno<|im_end|>"]
    assert notes == (LAST_ALONE,)


@pytest.mark.parametrize("system", [None, "be kind"])
def test_answers_are_learnt_where_the_system_prompt_wanders_and_nothing_asks_for_them(system: str | None) -> None:
    ids, labels, notes = arrays(BYTES["wandering"], chat("a", "yes", "b", "no", system=system))
    assert runs(BYTES["wandering"], ids, labels) == [" yes</s>", " no</s>"]
    assert notes == ()


def test_the_next_turn_s_beginning_is_no_end() -> None:
    assert learnt(BYTES["headed"], chat("a", "yes", "b", "no.")) == ["yes", "no.</s>"]


def test_an_earlier_turn_may_have_another_end_than_the_last() -> None:
    tokenizer = byte_level(HARMONY)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|return|>", "<|channel|>", "<|message|>", "<|end|>"]})
    final = "<|channel|>final<|message|>"
    assert learnt(tokenizer, chat("a", "yes", "b", "no")) == [f"{final}yes", f"{final}no<|return|>"]


@pytest.mark.parametrize("name", STYLES)
def test_what_ends_an_answer_in_training_stops_it_in_generation(name: str) -> None:
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=500, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    )
    ids, _, _ = arrays(BYTES[name], chat("a", "yes"))
    assert ids[-1] in stop_ids(model, BYTES[name])


def test_no_word_of_the_user_is_learnt_where_a_turn_has_another_beginning() -> None:
    tokenizer, turns = byte_level(CHANGING), chat("ask", "yes", "private", "maybe", "more", "no")
    ids, labels, notes = arrays(tokenizer, turns)
    assert runs(tokenizer, ids, labels) == ["no<|end|>"]
    assert notes == (LAST_ALONE,)


def test_what_the_template_writes_behind_an_answer_is_no_part_of_it() -> None:
    """Vocabularies have ".\\n\\n" as one token; asked for, the answer would end in line breaks."""
    inner = Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate([*"#:.", "Ċ", "Ġ", *"abcdefghijklmnopqrstuvwxyz"])}, merges=[])
    )
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    size = inner.get_vocab_size()
    merged = {**inner.get_vocab(), ".Ċ": size, ".ĊĊ": size + 1}
    inner.model = models.BPE(vocab=merged, merges=[(".", "Ċ"), (".Ċ", "Ċ")])
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\\n\\n(?=#)", "merged_with_previous"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>")
    ids, labels, _ = arrays(tokenizer, chat("a", "four."), EncodingOptions(500, chat_template=INSTRUCTIONS))
    tokens = tokenizer.convert_ids_to_tokens(ids[labels != IGNORED].tolist())
    assert tokens == [*"four", ".", "</s>"]


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
@pytest.mark.parametrize("name", ["spaced", "endless", "none"])
def test_a_token_across_the_beginning_of_the_answer_is_cut_in_two(kind: str, name: str) -> None:
    """By what stands before it alone; nothing is put between the two."""
    tokenizer = (BYTES if kind == "bytes" else PIECES)[name]
    for answer in ("take", " takes", "\ntakes", "17 days"):
        ids, labels, _ = arrays(tokenizer, chat("it", answer))
        asked = encode_prompt(tokenizer, chat("it"), OPTIONS)
        np.testing.assert_array_equal(ids[: len(asked)], asked)
        assert (labels[: len(asked)] == IGNORED).all() and (labels[len(asked) :] != IGNORED).all()
        before, after = tokenizer.decode(asked), tokenizer.decode(ids)
        assert after == f"{before}{answer}</s>"


THOUGHT = "<think>\n\n</think>\n\n"
WORDS = st.lists(st.text(st.sampled_from("takesfour17?."), min_size=1, max_size=5), min_size=1, max_size=4).map(
    " ".join
)
CHATS = st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=3).map(
    lambda pairs: chat(*(t for p in pairs for t in p))
)


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
@pytest.mark.parametrize("name", STYLES)
@settings(max_examples=6, deadline=None)
@given(turns=CHATS, system=st.sampled_from([None, "four days"]))
def test_every_answer_is_learnt_and_nothing_else(
    kind: str, name: str, turns: tuple[Turn, ...], system: str | None
) -> None:
    """The text of what is learnt is the answers', each with its end; the tokens before the last one are those of its prompt."""
    tokenizer = (BYTES if kind == "bytes" else PIECES)[name]
    options = OPTIONS if name == "gemma" else EncodingOptions(500, system_prompt=system)
    ids, labels, notes = arrays(tokenizer, turns, options)
    asked = encode_prompt(tokenizer, turns[:-1], options)
    np.testing.assert_array_equal(ids[: len(asked)], asked)
    assert (labels[len(asked) :] != IGNORED).all() and labels[len(asked) - 1] == IGNORED
    answers = [turn.content for turn in turns if turn.role == "assistant"]
    found = runs(tokenizer, ids, labels)
    if name in ("endless", "spaced"):  # of an earlier answer, a token with the blank before it is not learnt
        answers, found = answers[-1:], found[-1:]
    assert notes == () and len(found) == len(answers)
    if kind == "bytes":  # the other vocabulary lacks letters
        assert [text.strip().removeprefix(THOUGHT).split("<")[0] for text in found] == answers


@pytest.mark.parametrize(
    "answer", ["i", "th", "think", "assistant", "<", "\n\n.", "user", "<|im_end|>", "</s>", "Mark0x0z"]
)
@pytest.mark.parametrize("name", ["qwen3", "reasoning", "wandering", "chatml", "phi3", "none", "headed"])
def test_an_answer_may_look_like_a_part_of_the_template(name: str, answer: str) -> None:
    tokenizer = BYTES[name]
    ids, labels, _ = arrays(tokenizer, chat(answer, answer, answer, answer))
    asked = encode_prompt(tokenizer, chat(answer, answer, answer), OPTIONS)
    np.testing.assert_array_equal(ids[: len(asked)], asked)
    last = tokenizer.decode(ids[len(asked) :])
    assert last.count(answer.strip()) >= 1 and (labels[len(asked) :] != IGNORED).all()


def test_blanks_around_an_answer_stay_if_the_template_leaves_them() -> None:
    assert learnt(BYTES["chatml"], chat("a", " yes \n")) == [" yes \n<|im_end|>"]
    assert learnt(BYTES["llama3"], chat("a", " yes \n")) == ["yes<|eot_id|>"]
    assert learnt(BYTES["none"], chat("a", " yes \n")) == [" yes \n</s>"]


def test_the_end_of_the_text_is_not_learnt_behind_the_end_of_the_turn() -> None:
    """Phi-3 puts one there, and Gemma a line break: both are left out."""
    for name, end in (("phi3", "<|end|>"), ("gemma", "<end_of_turn>")):
        ids, _, _ = arrays(BYTES[name], chat("a", "yes"))
        assert BYTES[name].decode(ids[-1:]) == end
        assert BYTES[name].eos_token_id not in ids


def test_an_added_token_may_swallow_what_stands_around_it() -> None:
    """As Phi-3's, which take the line break behind them."""
    tokenizer = byte_level(PHI3)
    swallowing = [AddedToken(f"<|{role}|>", rstrip=True, special=True) for role in ("user", "assistant", "end")]
    tokenizer.add_special_tokens({"additional_special_tokens": swallowing}, replace_extra_special_tokens=False)
    for answer in ("yes", " yes"):
        ids, labels, _ = arrays(tokenizer, chat("a", answer, "b", answer))
        assert [text.strip() for text in runs(tokenizer, ids, labels)] == ["yes<|end|>"] * 2
        asked = encode_prompt(tokenizer, chat("a", answer, "b"), OPTIONS)
        np.testing.assert_array_equal(ids[: len(asked)], asked)


def test_an_end_that_is_no_special_token_is_one_all_the_same() -> None:
    inner = Tokenizer.from_str(byte_level(CHATML).backend_tokenizer.to_str())
    kept = json.loads(inner.to_str())
    for token in kept["added_tokens"]:
        token["special"] = token["content"] in ("<s>", "</s>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(kept)), eos_token="</s>")
    tokenizer.chat_template = CHATML
    assert learnt(tokenizer, chat("a", "yes", "b", "no")) == ["yes<|im_end|>", "no<|im_end|>"]


def test_marks_of_a_template_that_the_tokenizer_does_not_know_are_text_and_the_end_of_text_ends_the_answer() -> None:
    inner = Tokenizer.from_str(byte_level(None).backend_tokenizer.to_str())
    kept = json.loads(inner.to_str())
    kept["added_tokens"] = [token for token in kept["added_tokens"] if token["content"] == "</s>"]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(kept)), eos_token="</s>")
    ids, labels, _ = arrays(tokenizer, chat("a", "yes"), EncodingOptions(500, chat_template=CHATML))
    assert runs(tokenizer, ids, labels) == ["yes</s>"]


def test_beginning_and_end_may_be_one_token_and_padding_lack() -> None:
    inner = byte_level(None).backend_tokenizer
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="</s>", eos_token="</s>")
    assert tokenizer.pad_token_id is None
    assert learnt(tokenizer, chat("a", "yes", "b", "no")) == ["yes</s>", "no</s>"]


@pytest.mark.parametrize("name", ["chatml", "none", "spaced", "wandering", "reasoning"])
def test_a_vocabulary_of_words(name: str) -> None:
    """Blanks and line breaks are no tokens at all, and capitals are small."""
    marks = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    words = [*marks, *["how", "long", "four", "days", "user", "assistant", "?", "[", "[/", "inst", "]"]]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.normalizer, inner.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = STYLES[name]
    ids, labels, notes = arrays(tokenizer, chat("How long?", "Four days", "Long?", "Four"))
    end = "<|im_end|>" if name in ("chatml", "reasoning") else "</s>"
    kept = [word for word in tokenizer.convert_ids_to_tokens(ids[labels != IGNORED].tolist()) if word != "<unk>"]
    between = [] if name == "spaced" else [end]
    assert kept == ["four", "days", *between, "four", end] and notes == ()
    asked = encode_prompt(tokenizer, chat("How long?", "Four days", "Long?"), OPTIONS)
    np.testing.assert_array_equal(ids[: len(asked)], asked)


def test_a_text_that_has_its_beginning_and_end_gets_no_second_one() -> None:
    tokenizer = byte_level(None, adds_bos=True)
    for text in ("yes", "<s>yes", "yes</s>", "<s>yes</s>"):
        ids = encode(tokenizer, [Sample(text=text)], OPTIONS).examples.input_ids[0]
        assert tokenizer.decode(ids) == "<s>yes</s>"
    np.testing.assert_array_equal(encode_prompt(tokenizer, "yes", OPTIONS), ids[:-1])


def test_a_tokenizer_without_an_end_will_do_where_the_template_ends_turns() -> None:
    inner = byte_level(None).backend_tokenizer
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    tokenizer.chat_template = CHATML
    assert learnt(tokenizer, chat("a", "yes")) == ["yes<|im_end|>"]
    with pytest.raises(ModelError, match="no token for the end") as caught:
        encode(tokenizer, [Sample(text="yes")], OPTIONS)
    assert "\n" not in str(caught.value)


@given(most=st.integers(1, 80), name=st.sampled_from(["llama3", "chatml", "none", "gemma", "wandering"]))
@settings(max_examples=60, deadline=None)
def test_beginning_and_system_prompt_stay_if_there_is_room(most: int, name: str) -> None:
    tokenizer = BYTES[name]
    system = None if name == "gemma" else "days"
    turns = chat("How long does a parcel take to arrive? Can I pay later?", "four", system=system)
    whole, labels, _ = arrays(tokenizer, turns)
    answer = int((labels != IGNORED).sum())
    if answer >= most:
        with pytest.raises(DataError, match="choose a larger --max-length"):
            encode(tokenizer, [Sample(turns)], EncodingOptions(most))
        return
    found = encode(tokenizer, [Sample(turns)], EncodingOptions(most))
    ids, room = found.examples.input_ids[0], most - answer
    assert len(ids) == min(most, len(whole)) and found.num_cut == (len(whole) > most)
    np.testing.assert_array_equal(ids[-answer:], whole[-answer:])
    assert int((found.examples.labels[0] != IGNORED).sum()) == answer
    if room >= 2 and len(whole) > most and whole[0] == tokenizer.bos_token_id:
        assert ids[0] == whole[0]
    if room > 30 and name in ("llama3", "chatml", "none"):
        assert "days" in tokenizer.decode(ids)


def test_the_first_token_behind_a_cut_is_not_learnt() -> None:
    """What it followed is gone: of an earlier answer that is cut in two, and where all is learnt."""
    tokenizer, turns = BYTES["llama3"], chat("a", "It takes four days, and five in winter.", "b", "Yes")
    whole, labels, _ = arrays(tokenizer, turns)
    most = len(whole) - int(np.flatnonzero(labels != IGNORED)[3])
    for options in (EncodingOptions(most), EncodingOptions(most, train_on="all")):
        ids, labels, _ = arrays(tokenizer, turns, options)
        assert len(ids) == most and ids[0] == tokenizer.bos_token_id
        assert labels[0] == labels[1] == IGNORED and labels[2] == ids[2]


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% for m in messages %}{{ m.role }}\n{% endfor %}", "cannot be told"),
        ("{% for m in messages %}{{ m.content }}|{{ m.content }}\n{% endfor %}", "cannot be told"),
        ("{{ raise_exception('not\nthis') }}", "cannot render a chat: not this"),
        ("{{ messages[7].content.strip() }}", "cannot render a chat"),
        ("{{", "cannot render a chat"),
    ],
)
def test_a_template_is_refused_in_one_line_that_names_the_example(template: str, says: str) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        arrays(byte_level(template), chat("a", "yes"))
    assert str(caught.value).startswith("Example 1: ") and "\n" not in str(caught.value)


def test_a_chat_that_nobody_answers_is_refused() -> None:
    with pytest.raises(LoraA2Error, match=r"Example 2: .* no turn of the assistant"):
        encode(BYTES["chatml"], [Sample(chat("a", "yes")), Sample(chat("a"))], OPTIONS)


def test_turns_behind_the_last_answer_are_left_out() -> None:
    answered, going_on = chat("a", "yes"), chat("a", "yes", "b")
    np.testing.assert_array_equal(arrays(BYTES["phi3"], answered)[0], arrays(BYTES["phi3"], going_on)[0])


def test_a_slow_tokenizer_is_refused_in_one_line() -> None:
    class Slow:
        is_fast = False

    slow: Any = Slow()
    with pytest.raises(ModelError, match=r"is a Slow, .*tokenizer\.json") as caught:
        encode(slow, [Sample(text="a")], OPTIONS)
    assert "\n" not in str(caught.value)


def real_vocabularies() -> list[Path]:
    """Folders of tokenizers that LORA_A2_TOKENIZERS names, and GPT-2's beside the project."""
    named = [Path(name) for name in os.environ.get("LORA_A2_TOKENIZERS", "").split(os.pathsep) if name]
    return [path for path in (*named, Path(__file__).parents[4] / "shared" / "tokenizers" / "gpt2") if path.is_dir()]


def test_real_vocabularies() -> None:
    if not real_vocabularies():
        pytest.skip("no real tokenizer is here: name folders in LORA_A2_TOKENIZERS")
    for tokenizer in map(AutoTokenizer.from_pretrained, real_vocabularies()):
        for template in (None, *STYLES.values()):
            options = EncodingOptions(500, chat_template=template)
            for answer in ("four days", " 42", "\n\nfour", "四天 🙂", ".", "think"):
                ids, labels, _ = arrays(tokenizer, chat("How long?", "a", "How long?", answer), options)
                text = runs(tokenizer, ids, labels)[-1]
                assert answer.strip() in text and ids[-1] in tokenizer.added_tokens_decoder
                asked = encode_prompt(tokenizer, chat("How long?", "a", "How long?"), options)
                np.testing.assert_array_equal(ids[: len(asked)], asked)
                assert (labels[len(asked) :] != IGNORED).all()
