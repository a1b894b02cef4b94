"""Models whose attention does not take packed sentences: padded batches, with the same results as the slow trainer's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine import SETTINGS, WAYS, _compare, _mask, _task
from test_naive import labelling, run_beside
from transformers import AutoModel, FNetConfig

from federation import save_data, save_model
from lora_a2.cli import main
from lora_a2.core.types import Factor
from lora_a2.engine.calling import hidden_width
from lora_a2.engine.local import train_cohort
from lora_a2.engine.packing import PackedBatch
from lora_a2.engine.padding import PaddedBatch, pad
from lora_a2.errors import ModelError
from lora_a2.federation.observer import Observer
from lora_a2.model.pretrained import random_head
from lora_a2.simulation import make_plan, simulate
from naive import NAIVE
from reference import ReferenceClassifier
from tiny import CONFIGS, PADDED, POOLING, backbone, classifier, clients, examples, model_of, random_adapter

ALONE = {"deberta-v2", "xlnet"}
"""DeBERTa's query and key layers also read the embeddings of relative positions, which no client has for itself; XLNet's rows
are token by token."""


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=7), min_size=1, max_size=3),
    st.sampled_from(["mean", "cls", "last"]),
)
def test_padding_places_every_token_once(lengths: list[list[int]], pooling: str) -> None:
    ticket = iter(range(1, 10_000))
    cohort = [[np.array([next(ticket) for _ in range(n)]) for n in client] for client in lengths]
    batch = pad(cohort, pooling=pooling)  # type: ignore[arg-type]
    flat = [s for client in cohort for s in client]
    most = max(map(len, lengths))
    assert batch.input_ids.shape == (len(lengths) * most, max(len(s) for s in flat))
    owner = np.repeat(np.arange(len(lengths)), [len(client) for client in lengths])
    assert (batch.rows.numpy() // most == owner).all()
    hidden = batch.input_ids[..., None].float()
    vectors = batch.vectors(hidden)[:, 0].tolist()
    ways = {"mean": np.mean, "cls": lambda s: s[0], "last": lambda s: s[-1]}
    for row, sentence, vector in zip(batch.rows, flat, vectors, strict=True):
        assert batch.input_ids[row][batch.attention_mask[row].bool()].tolist() == sentence.tolist()
        assert vector == pytest.approx(ways[pooling](sentence))
    assert int((batch.input_ids > 0).sum()) == sum(len(s) for s in flat)
    assert batch.attention_mask.any(1).all()


@pytest.mark.parametrize("family", PADDED)
@pytest.mark.parametrize("trainable", WAYS, ids=lambda w: "".join(sorted(w)))
@pytest.mark.parametrize("masked", [False, True])
def test_training_equals_the_reference(family: str, trainable: frozenset[Factor], masked: bool) -> None:
    """One client; and several of unequal data, where the model can."""
    engine, layout = classifier(backbone(family), family)
    assert engine.batching == "padded"
    assert isinstance(engine.pack([[np.arange(3)]]), PaddedBatch)
    start = random_adapter(layout, rank=3)
    tasks = [_task(start, n, k, _mask(start, k) if masked else None) for k, n in enumerate([5, 14, 2])]
    _compare(family, tasks[:1], trainable)
    assert engine.alone == (family in ALONE)
    if not engine.alone:
        _compare(family, tasks, trainable)


@pytest.mark.parametrize("family", PADDED)
def test_predictions_equal_the_padded_model(family: str) -> None:
    model = backbone(family)
    reference = ReferenceClassifier(model, [], POOLING[family], random_head(3, 16, 4.0, seed=0))
    engine, layout = classifier(model, family)
    adapter, data = random_adapter(layout, rank=4, scale=1.0), examples(23)
    weights = {n: torch.tensor(adapter.scaling * f.B @ f.A) for n, f in adapter.factors.items()}
    with torch.no_grad():
        expected = reference(data.input_ids, weights, None).numpy()
    got = engine.predict(adapter, data.input_ids, batch_size=5)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    assert np.abs(engine.predict(None, data.input_ids) - got).max() > 1e-2


@pytest.mark.parametrize(("method", "family"), [("lora-a2", "deberta-v2"), ("lora-a2", "rembert"), ("full", "rembert")])
def test_whole_rounds_equal_the_equations(method: str, family: str) -> None:
    run_beside(method, NAIVE[method], labelling(family))


@pytest.mark.parametrize("family", sorted(ALONE))
def test_clients_that_would_feel_each_other_are_refused_in_one_pass(family: str) -> None:
    engine, layout = classifier(backbone(family), family)
    start = random_adapter(layout, 2)
    with pytest.raises(ModelError, match="2 clients in one pass"):
        train_cohort(engine, [_task(start, 4, k, None) for k in range(2)], frozenset({"B"}), SETTINGS)


@pytest.mark.parametrize("family", CONFIGS)
def test_models_with_the_interface_are_packed(family: str) -> None:
    engine, _ = classifier(backbone(family), family)
    assert engine.batching == "packed"
    assert not engine.alone
    assert isinstance(engine.pack([[np.arange(3)]]), PackedBatch)


def test_a_model_whose_packed_results_differ_is_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    """With another attention in ours' place, the sentences of a packed batch see each other."""
    monkeypatch.setattr("lora_a2.engine.fit.ATTENTION", "eager")
    engine, layout = classifier(backbone("bert"), "bert")
    assert engine.batching == "padded"
    assert engine.backbone.config._attn_implementation == "sdpa"
    start = random_adapter(layout, rank=3)
    _compare("bert", [_task(start, n, k, None) for k, n in enumerate([5, 9])], frozenset({"B"}))


def test_a_model_without_an_attention_mask_is_refused() -> None:
    config = FNetConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, intermediate_size=24)
    model = AutoModel.from_config(config)
    with pytest.raises(ModelError, match="FNetModel takes no attention mask"):
        hidden_width(model)


class Listening(Observer):
    """Keeps the lines that the user should see."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.parametrize(("family", "count"), [("rembert", 1), ("bert", 0), ("mpnet", 0)])
def test_a_run_says_once_that_it_pads(family: str, count: int) -> None:
    members, model, observer = clients([5, 4, 3]), model_of(backbone(family), family), Listening()
    plan = make_plan(model, members, num_server_rounds=2, r=2, rank_budget=1, num_workers=2)
    assert len(list(simulate(model, members, plan, observer=observer))) == 2
    assert len(observer.notes) == count
    assert all("padded" in note and "slower" in note for note in observer.notes)


def test_the_command_line_says_once_that_it_pads(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model, data = save_model(tmp_path / "model", "rembert"), save_data(tmp_path / "data.csv")
    argv = ["--model", str(model), "--data", str(data), "--test-fraction", "0.3", "--output-dir", str(tmp_path / "run")]
    sizes = ["--num-clients", "2", "--partitioner", "iid", "--r", "2", "--num-server-rounds", "2"]
    assert main(["run", *argv, *sizes]) == 0
    printed = capfd.readouterr()
    assert printed.err.count("RemBertModel is trained on padded sentences") == 1
    assert main(["evaluate", str(tmp_path / "run"), "--json"]) == 0
