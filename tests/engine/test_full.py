"""Training of every weight: what a client sends, put back on the pre-trained model, is the model it ended with."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lora_a2.core.randomness import generator
from lora_a2.engine.full import plain_layers, train_full, weight_shapes
from lora_a2.engine.work import ClientTask, TrainingSettings, epoch_orders
from tiny import CONFIGS, backbone, classifier, examples, random_adapter

SETTINGS = TrainingSettings(batch_size=4, learning_rate=1e-3, learning_rate_ratio=1.0)


@pytest.mark.parametrize("family", CONFIGS)
def test_changes_put_back_give_the_trained_model(family: str) -> None:
    engine, layout = classifier(backbone(family), family)
    data = examples(9)
    before = engine.predict(None, data.input_ids)
    task = ClientTask(random_adapter(layout, 1), data, None, epoch_orders(9, 2, generator(0, "orders")))
    changes, head, loss = train_full(engine, task, {}, SETTINGS)
    assert {n: c.shape for n, c in changes.items()} == dict(weight_shapes(engine))
    assert not head
    assert 0 < loss < 10
    with plain_layers(engine), torch.no_grad():
        weights = {n: p + torch.from_numpy(changes[n]) for n, p in engine.backbone.named_parameters()}
        batch = engine.pack([list(data.input_ids)])
        expected = engine.objective.logits(batch.vectors(engine.hidden_with(weights, batch)))[
            torch.argsort(batch.sentences)
        ].numpy()
    engine.set_base(changes)
    np.testing.assert_allclose(engine.predict(None, data.input_ids), expected, atol=1e-4)
    assert np.abs(expected - before).max() > 1e-2
    engine.set_base({})
    np.testing.assert_array_equal(engine.predict(None, data.input_ids), before)


def test_a_second_round_starts_where_the_first_ended() -> None:
    """Two rounds of one client and plain steps from its moved weights: the base is the start, and comes back unchanged."""
    engine, layout = classifier(backbone("bert"), "bert", dtype=torch.bfloat16)
    data = examples(5)
    task = ClientTask(random_adapter(layout, 1), data, None, epoch_orders(5, 1, generator(0, "orders")))
    first, _, first_loss = train_full(engine, task, {}, SETTINGS)
    still = TrainingSettings(batch_size=8, learning_rate=0.0, learning_rate_ratio=1.0)
    unmoved, _, second_loss = train_full(engine, task, first, still)
    assert all(not change.any() for change in unmoved.values())
    assert second_loss < first_loss
