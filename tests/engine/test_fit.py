"""How a backbone is found to be fed: positions, room, windows, caps, and what is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AttentionInterface, PreTrainedModel
from transformers.models.roberta.modeling_roberta import RobertaEmbeddings

from families import FAMILIES, make
from lora_a2.engine.fit import Fit, find_fit
from lora_a2.engine.kernels import attention
from lora_a2.engine.packing import Positions
from lora_a2.errors import ModelError


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=9), min_size=1, max_size=5))
def test_robertas_positions(sentences: list[list[int]]) -> None:
    """As Transformers computes them of each sentence alone, with padding tokens in the texts."""
    expected = [
        RobertaEmbeddings.create_position_ids_from_input_ids(torch.tensor([s]), padding_idx=1)[0] for s in sentences
    ]
    got = Positions(start=2, padding_idx=1).of(np.concatenate(sentences), np.array([len(s) for s in sentences]))
    assert got.tolist() == torch.cat(expected).tolist()
    counted = Positions(start=2).of(np.concatenate(sentences), np.array([len(s) for s in sentences]))
    assert counted.tolist() == [2 + i for s in sentences for i in range(len(s))]


@pytest.mark.parametrize("pad", [0, 5, 50])
@pytest.mark.parametrize(
    ("family", "room"), [("bloom", None), ("gptj", 72), ("xlnet", None), ("roberta", 71), ("mpnet", 70), ("opt", 72), ("llama", 72)]
)  # fmt: skip
def test_room_does_not_depend_on_the_padding_token(family: str, room: int | None, pad: int) -> None:
    assert find_fit(make(family), 60, pad).room == room


def built(family: str, **values: Any) -> PreTrainedModel:
    """A family with some options of its configuration changed."""
    config = FAMILIES[family]
    FAMILIES[family] = type(config)(**(config.to_dict() | values))
    try:
        return make(family)
    finally:
        FAMILIES[family] = config


@contextmanager
def instead(function: Any) -> Iterator[None]:
    """Another packed attention behind Transformers' interface."""
    AttentionInterface.register(attention.ATTENTION, function)
    try:
        yield
    finally:
        AttentionInterface.register(attention.ATTENTION, attention.packed_attention)


@pytest.mark.parametrize("window", [8, 300])
@pytest.mark.parametrize("family", ["modernbert", "mistral", "gemma2", "gemma3_text", "qwen3", "phi3"])
def test_a_window_that_is_ignored_is_seen(family: str, window: int) -> None:
    name = "local_attention" if family == "modernbert" else "sliding_window"
    options = {name: window, "max_position_embeddings": 400}

    def fit() -> Fit:
        return find_fit(built(family, **options), 400, 0)

    def deaf(*args: Any, **kwargs: Any) -> Any:
        return attention.packed_attention(*args, **kwargs | {"sliding_window": None})

    assert fit().reason is None
    with instead(deaf):
        assert fit().reason is not None


def test_a_cap_that_is_ignored_is_seen_though_scores_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    def fit() -> Fit:
        model = built("gemma2", attn_logit_softcapping=50.0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.2)
        return find_fit(model, 6, 0)

    assert fit().reason is None
    usual = attention.attend

    def uncapped(q: Any, k: Any, v: Any, packed: Any, rule: attention.Rule, bias: Any = None) -> Any:
        return usual(q, k, v, packed, dataclasses.replace(rule, softcap=None), bias)

    monkeypatch.setattr(attention, "attend", uncapped)
    assert fit().reason is not None


def test_frequencies_that_change_with_the_longest_sentence_are_refused() -> None:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    options = {"rope_parameters": rope, "original_max_position_embeddings": 16}
    assert find_fit(built("phi3", **options), 16, 0).reason is None
    with pytest.raises(ModelError, match="choose at most 16"):
        find_fit(built("phi3", **options), 17, 0)
