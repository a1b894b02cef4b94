"""What a model writes: the same alone and in a batch, whole and in pieces, and what the plain loop over its logits says."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from lora_a2.errors import ConfigError, DataError
from lora_a2.tasks.causal_lm.generation import generate_texts, stream_text
from lora_a2.tasks.causal_lm.sampling import logits_processors
from lora_a2.tasks.causal_lm.sampling_options import SamplingOptions
from lora_a2.tasks.causal_lm.stopping import positions, stop_ids
from plain_writers import tokenizer, writer

FAMILIES = ("llama", "gpt2", "gemma2", "opt", "bloom", "falcon", "gpt_neox", "mistral", "mpt", "rwkv")
SAMPLING = SamplingOptions(max_new_tokens=9, do_sample=True, temperature=1.5, top_k=30, top_p=0.95, seed=3)
SHORT = SamplingOptions(max_new_tokens=9)
TOKENIZER = tokenizer()


@pytest.fixture(autouse=True)
def _no_advice(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Transformers has nothing to say about how it is called."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)
    assert said == []


def prompts(count: int, seed: int = 0, longest: int = 20) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(7, 45, rng.integers(1, longest + 1)) for _ in range(count)]


def greedy(model: PreTrainedModel, prompt: np.ndarray, most: int, penalty: float = 1.0) -> str:
    """The slow twin: the whole text through the model for every token, without cache, mask or padding."""
    ids = list(prompt)
    stops = stop_ids(model, TOKENIZER)
    while len(ids) < len(prompt) + most:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1]
        for token in set(ids):
            logits[token] = logits[token] * penalty if logits[token] < 0 else logits[token] / penalty
        if (token := int(logits.argmax())) in stops:
            break
        ids.append(token)
    return str(TOKENIZER.decode(ids[len(prompt) :], skip_special_tokens=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_writes_what_the_plain_loop_writes(family: str) -> None:
    model, given = writer(family, seed=4), prompts(7)
    expected = [greedy(model, prompt, 9) for prompt in given]
    assert len(set(expected)) > 3
    assert generate_texts(model, TOKENIZER, given, SHORT, batch_size=4) == expected
    assert [generate_texts(model, TOKENIZER, [p], SHORT)[0] for p in given] == expected
    penalised = SamplingOptions(max_new_tokens=9, repetition_penalty=1.4)
    assert generate_texts(model, TOKENIZER, given, penalised) == [greedy(model, p, 9, 1.4) for p in given]


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
@pytest.mark.parametrize("options", [SAMPLING, SamplingOptions(max_new_tokens=6, num_beams=3, repetition_penalty=1.2)])
def test_a_text_depends_on_its_prompt_and_the_options_alone(family: str, options: SamplingOptions) -> None:
    model, given = writer(family), prompts(6)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    expected = [generate_texts(model, TOKENIZER, [p], options)[0] for p in given]
    assert len(set(expected)) > 3
    assert generate_texts(model, TOKENIZER, given, options, batch_size=3) == expected
    assert generate_texts(model, TOKENIZER, given[::-1], options) == expected[::-1]
    assert ["".join(stream_text(model, TOKENIZER, p, options)) for p in given] == expected
    assert torch.equal(torch.get_rng_state(), state), "the global random state is left alone"


def test_other_seeds_write_other_texts() -> None:
    model, (prompt,) = writer("llama"), prompts(1)
    options = [SamplingOptions(max_new_tokens=12, do_sample=True, seed=seed) for seed in range(4)]
    assert len({generate_texts(model, TOKENIZER, [prompt], o)[0] for o in options}) > 2


def test_draws_follow_the_probabilities() -> None:
    """The shares of the first token over many seeds, beside softmax by hand; 5 standard deviations apart at most."""
    model, prompt = writer("llama"), np.array([8, 9, 10])
    with torch.no_grad():
        logits = model(torch.from_numpy(prompt)[None]).logits[0, -1].double().numpy() / 0.7
    kept = np.argsort(-logits)[:6]
    weights = np.exp(logits[kept] - logits[kept].max())
    expected = dict(zip(kept.tolist(), weights / weights.sum(), strict=True))
    count, seen = 1500, dict.fromkeys(expected, 0)
    for seed in range(count):
        options = SamplingOptions(do_sample=True, temperature=0.7, top_k=6, seed=seed)
        scores = torch.from_numpy(logits * 0.7).float()[None]
        seen[int(logits_processors([prompt], options)(torch.from_numpy(prompt)[None], scores).argmax())] += 1
    for token, probability in expected.items():
        deviation = np.sqrt(probability * (1 - probability) / count)
        assert abs(seen[token] / count - probability) < 5 * deviation + 1 / count


def test_the_model_s_own_generation_config_gives_stops_and_nothing_else() -> None:
    model, given = writer("llama"), prompts(4)
    expected = generate_texts(model, TOKENIZER, given, SHORT)
    own = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=True,
        temperature=0.6,
        top_p=0.9,
        repetition_penalty=1.9,
        max_length=3,
        min_new_tokens=9,
        eos_token_id=2,
    )
    model.generation_config = own
    model.train()
    assert generate_texts(model, TOKENIZER, given, SHORT) == expected
    assert model.generation_config is own and own.temperature == 0.6
    assert all(module.training for module in model.modules())


def test_every_stop_is_kept_and_none_is_shown() -> None:
    model, given = writer("gpt2"), prompts(6)
    model.generation_config.eos_token_id = None
    plain = generate_texts(model, TOKENIZER, given, SamplingOptions(max_new_tokens=20))
    (stop,) = TOKENIZER(",").input_ids
    assert sum("," in text for text in plain) > 1
    model.generation_config.eos_token_id = [2, stop, 10_000]
    assert stop_ids(model, TOKENIZER) == tuple(sorted({2, 6, stop}))  # </s>, <|end|> of the template, the model's
    found = generate_texts(model, TOKENIZER, given, SamplingOptions(max_new_tokens=20))
    assert found == [text.split(",")[0] for text in plain]
    assert "".join(stream_text(model, TOKENIZER, given[0], SamplingOptions(max_new_tokens=20))) == found[0]


def test_the_end_of_a_turn_is_read_off_the_template() -> None:
    model = writer("llama")
    assert stop_ids(model, tokenizer()) == (2, 6)
    for template in (None, "{{ raise_exception('no') }}", "{% for m in messages %}### {{ m.content }}\n{% endfor %}"):
        assert stop_ids(model, tokenizer(template)) == (2,)


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "mpt"])
def test_a_text_ends_at_the_model_s_last_position(family: str) -> None:
    model = writer(family, seed=4, eos_token_id=None)
    model.generation_config.eos_token_id = None
    limit = positions(model)
    assert limit == 72
    bare = tokenizer(None)
    bare.eos_token = None
    rng = np.random.default_rng(0)
    given = [rng.integers(7, 45, n) for n in (limit - 1, limit - 4, 5, limit - 4, limit - 40)]
    options = SamplingOptions(max_new_tokens=30)
    assert stop_ids(model, bare) == ()
    lengths = [len(t) for t in generate_texts(model, bare, given, options)]
    assert generate_texts(model, bare, given, options) == [generate_texts(model, bare, [p], options)[0] for p in given]
    assert lengths[0] <= 4 < max(lengths)
    with pytest.raises(DataError, match="Prompt 2 has 72 tokens, and the model has 72 positions"):
        generate_texts(model, bare, [given[2], rng.integers(7, 45, limit)], options)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (np.array([], np.int64), "Prompt 1 should be a list of token ids"),
        (np.array([[1, 2]]), "Prompt 1 should be a list of token ids"),
        (np.array([1.0]), "Prompt 1 should be a list of token ids"),
        (np.array([1, 60]), "its ids are 0 to 59"),
        (np.array([-1]), "its ids are 0 to 59"),
    ],
)
def test_prompts_that_are_none(prompt: np.ndarray, expected: str) -> None:
    model = writer("llama")
    with pytest.raises(DataError, match=expected):
        generate_texts(model, TOKENIZER, [prompt])
    with pytest.raises(DataError, match=expected):
        stream_text(model, TOKENIZER, prompt)  # at once, not when it is read


def test_no_prompts_are_no_texts() -> None:
    assert generate_texts(writer("llama"), TOKENIZER, []) == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_new_tokens": 0}, "max-new-tokens: 0 should be a whole number from 1 on."),
        ({"num_beams": True}, "num-beams: True"),
        ({"temperature": 0.0, "do_sample": True}, "temperature: 0.0 should be a number greater than 0."),
        ({"top_p": 1.5, "do_sample": True}, "top-p: 1.5 should be at most 1."),
        ({"top_k": -1, "do_sample": True}, "top-k: -1"),
        ({"repetition_penalty": float("inf")}, "repetition-penalty: inf"),
        ({"temperature": 0.5}, "temperature: it has no effect here; it needs do-sample."),
        ({"top_k": 0}, "top-k: it has no effect here"),
        ({"seed": 1}, "seed: it has no effect here"),
        ({"do_sample": True, "num_beams": 2}, "num-beams: 2 beams are followed without drawing"),
    ],
)
def test_options_are_checked(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SamplingOptions(**options)
    assert expected in str(caught.value)


def thread_names() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


def test_a_stream_that_is_left_leaves_no_thread() -> None:
    model, (prompt,) = writer("llama", eos_token_id=None), prompts(1, longest=4)
    stream = stream_text(model, TOKENIZER, prompt, SamplingOptions(max_new_tokens=60))
    assert "generation" not in thread_names(), "nothing is computed before it is read"
    assert next(stream)
    stream.close()
    assert "generation" not in thread_names()

    def interrupted() -> None:
        for _ in stream_text(model, TOKENIZER, prompt, SamplingOptions(max_new_tokens=60)):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert "generation" not in thread_names()
    assert generate_texts(model, TOKENIZER, [prompt], SHORT)[0]


def test_an_error_of_the_model_reaches_who_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (prompt,) = writer("llama"), prompts(1)

    def fail(*args: Any, **options: Any) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(model.model, "forward", fail)
    with pytest.raises(MemoryError, match="no room"):
        list(stream_text(model, TOKENIZER, prompt))
    assert "generation" not in thread_names()


def test_streams_of_one_model_may_be_read_in_turns() -> None:
    model, given = writer("llama"), prompts(2)
    model.generation_config.eos_token_id = [2, 20]
    expected = generate_texts(model, TOKENIZER, given, SamplingOptions(max_new_tokens=15))
    streams = [stream_text(model, TOKENIZER, p, SamplingOptions(max_new_tokens=15)) for p in given]
    texts = ["", ""]
    for _ in range(20):
        for i, stream in enumerate(streams):
            texts[i] += next(stream, "")
    assert texts == expected


class Fixed:
    """Stands in for `generate()`: writes the given ids, whatever the prompt."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids

    def __call__(self, model: Any, input_ids: torch.Tensor, streamer: Any = None, **options: Any) -> torch.Tensor:
        if streamer is not None:
            streamer.put(input_ids)
            for token in self.ids:
                streamer.put(torch.tensor([token]))
            streamer.end()
        return torch.cat([input_ids, torch.tensor([self.ids])], 1)


def byte_fallback() -> PreTrainedTokenizerFast:
    """As Llama 2's: words that carry their blank, and bytes for what has no word."""
    pieces = ["▁a", "b", "▁", *(f"<0x{b:02X}>" for b in (0x0A, 0xE7, 0x8A, 0xAC, 0x41))]
    backend = Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(["<unk>", "</s>", *pieces])}, merges=[]))
    backend.decoder = decoders.Sequence(  # type: ignore[assignment]
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")


@settings(max_examples=60)
@given(st.lists(st.integers(2, 44), min_size=1, max_size=12), st.booleans())
def test_pieces_add_up_to_the_text_whatever_the_tokens(ids: list[int], bytewise: bool) -> None:
    """Also where a character takes several tokens, is never finished, or bytes turn out to be none."""
    model = writer("llama")
    chosen = byte_fallback() if bytewise else TOKENIZER
    given_ids = [2 + i % 8 for i in ids] if bytewise else [max(i, 7) for i in ids]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model), "generate", lambda model, ids, **options: Fixed(given_ids)(model, ids, **options))
        pieces = list(stream_text(model, chosen, np.array([3])))
        (whole,) = generate_texts(model, chosen, [np.array([3])])
    assert "".join(pieces) == whole
    assert all(pieces), "no piece is empty"
