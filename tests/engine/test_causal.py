"""The engine on language models that write, against the slow trainer: Transformers' own model and loss, padded."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine import _mask, _relative
from torch import nn

from lora_a2.core.randomness import generator
from lora_a2.core.types import Factor
from lora_a2.engine.kernels.frozen import FrozenWeight
from lora_a2.engine.local import train_cohort
from lora_a2.engine.work import ClientTask, TrainingSettings, epoch_orders
from lora_a2.model.causal import find_head
from lora_a2.tasks.causal_lm.objective import CausalLM, Head
from reference import ReferenceWriter, train_reference
from tiny import random_adapter
from writers import PACKED, WRITERS, whole_model, writing_network, written

SETTINGS = TrainingSettings(batch_size=4, learning_rate=2e-3, learning_rate_ratio=5.0, weight_decay=0.1)
WAYS: list[frozenset[Factor]] = [frozenset({"A"}), frozenset({"B"}), frozenset({"A", "B"})]


def _agree(family: str, trainable: frozenset[Factor], counts: list[int], masked: bool) -> None:
    whole = whole_model(family)
    reference = ReferenceWriter(whole)
    network, layout = writing_network(whole)
    start = random_adapter(layout, rank=4)
    tasks = [
        ClientTask(
            start,
            written(n, seed=k),
            _mask(start, k) if masked else None,
            epoch_orders(n, 2, generator(k, "orders")),
        )
        for k, n in enumerate(counts)
    ]
    for task in [tasks] if not network.alone else [[t] for t in tasks]:
        for own, result in zip(task, train_cohort(network, task, trainable, SETTINGS), strict=True):
            expected = train_reference(
                reference,
                own.start,
                own.examples.input_ids,
                own.examples.labels,
                own.orders,
                trainable,
                own.mask,
                batch_size=SETTINGS.batch_size,
                learning_rate=SETTINGS.learning_rate,
                ratio=SETTINGS.learning_rate_ratio,
                weight_decay=SETTINGS.weight_decay,
            )
            assert _relative(result.adapter, expected, own.start) < 1e-4


@pytest.mark.parametrize("family", WRITERS)
def test_one_client_equals_the_reference(family: str) -> None:
    _agree(family, frozenset({"A", "B"}), [7], masked=False)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
@pytest.mark.parametrize("trainable", WAYS, ids=lambda w: "".join(sorted(w)))
@pytest.mark.parametrize("masked", [False, True])
def test_a_cohort_of_unequal_clients_equals_the_reference(
    family: str, trainable: frozenset[Factor], masked: bool
) -> None:
    _agree(family, trainable, [5, 11, 2], masked)


@pytest.mark.slow
@pytest.mark.parametrize("family", WRITERS)
@pytest.mark.parametrize("trainable", WAYS, ids=lambda w: "".join(sorted(w)))
@pytest.mark.parametrize("masked", [False, True])
def test_every_family_equals_the_reference(family: str, trainable: frozenset[Factor], masked: bool) -> None:
    _agree(family, trainable, [5, 11, 2], masked)


@pytest.mark.parametrize("family", PACKED)
def test_these_families_are_packed(family: str) -> None:
    network, _ = writing_network(whole_model(family))
    assert network.notice is None


@pytest.mark.parametrize("family", WRITERS)
def test_what_is_measured_is_the_model_s_own_loss(family: str) -> None:
    """Each example alone, by Transformers: loss summed over learnt tokens, their number, and how many are the likeliest."""
    whole = whole_model(family)
    own = copy.deepcopy(whole)
    network, _ = writing_network(whole)
    examples = written(9, seed=3)
    found = network.measure(None, examples, batch_size=4)
    for row, ids, labels in zip(found, examples.input_ids, examples.labels, strict=True):
        logits = own(input_ids=torch.from_numpy(ids)[None]).logits[0, :-1].detach()
        targets = torch.from_numpy(labels[1:])
        learnt = targets != -100
        loss = nn.functional.cross_entropy(logits[learnt], targets[learnt], reduction="sum")
        right = int((logits.argmax(1) == targets)[learnt].sum())
        assert row[0] == pytest.approx(float(loss), rel=5e-5)
        assert (row[1], row[2]) == (int(learnt.sum()), right)


@settings(max_examples=30, deadline=None)
@given(
    tokens=st.integers(1, 40),
    width=st.integers(1, 9),
    vocabulary=st.integers(2, 30),
    softcap=st.sampled_from([None, 0.7]),
    scale=st.sampled_from([1.0, 0.3]),
    biased=st.booleans(),
    at_once=st.integers(1, 1200),
)
def test_cross_entropy_in_chunks_is_cross_entropy(
    tokens: int, width: int, vocabulary: int, softcap: float | None, scale: float, biased: bool, at_once: int
) -> None:
    torch.manual_seed(tokens)
    weight = torch.randn(vocabulary, width)
    bias = torch.randn(vocabulary) if biased else None
    objective = CausalLM(Head(weight, bias, softcap=softcap, scale=scale))
    objective._frozen = FrozenWeight(weight, bias)
    vectors = torch.randn(tokens, width, requires_grad=True)
    targets = torch.randint(vocabulary, (tokens,))
    logits = nn.functional.linear(vectors, weight, bias) * scale
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    expected = nn.functional.cross_entropy(logits, targets, reduction="none")
    (gradient,) = torch.autograd.grad(expected.sum(), vectors)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lora_a2.tasks.causal_lm.objective._CHUNK_VALUES", at_once)
        losses, ours = objective.cross_entropy(vectors.detach(), targets)
        assert len(objective.chunks(tokens)) == -(-tokens // (max(1, at_once // vocabulary // 32) * 32))
    torch.testing.assert_close(losses, expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours, gradient, rtol=1e-4, atol=1e-5)


def test_an_encoder_with_a_causal_head_is_refused() -> None:
    from transformers import BertConfig, BertLMHeadModel

    from lora_a2.errors import ModelError

    config = BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    model = BertLMHeadModel(config).eval()
    with pytest.raises(ModelError, match="is an encoder"):
        find_head(model, model.base_model)


def test_nothing_leaks_from_one_example_into_the_next() -> None:
    """What stands beside an example in a batch does not change what is measured of it."""
    network, _ = writing_network(whole_model("llama"))
    examples = written(8, seed=5)
    together = network.measure(None, examples, batch_size=8)
    alone = np.concatenate([network.measure(None, examples.take(np.array([i]))) for i in range(8)])
    np.testing.assert_allclose(together, alone, rtol=1e-5)
