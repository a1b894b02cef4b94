"""What a model in training writes: that of the plain merged model, in answer to what stands before the last answer."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest

import plain_writers
from lora_a2.config.run import RunConfig
from lora_a2.data.written import Samples
from lora_a2.engine.pool import Pool
from lora_a2.errors import ConfigError
from lora_a2.federation.observer import Observer
from lora_a2.model.pretrained import load_model
from lora_a2.runs.jobs import launch
from lora_a2.runs.writer import load_writer
from lora_a2.tasks.causal_lm.encoding import IGNORED
from lora_a2.tasks.causal_lm.generation import generate_texts
from lora_a2.tasks.causal_lm.sampling_options import SamplingOptions
from lora_a2.tasks.causal_lm.scores import text_metrics, text_statistics
from lora_a2.tasks.causal_lm.writing import LONGEST_ANSWER, chosen_examples, prompt_of, write
from tiny import random_adapter
from writers import whole_model

QUESTIONS = [("the hen", "is in"), ("a hen", "thinks"), ("what is it", "nothing"), ("is it he", "no"), ("who", "i am")]


def folder_of(path: Path, family: str = "llama") -> Path:
    whole_model(family).save_pretrained(path)
    plain_writers.tokenizer().save_pretrained(path)
    return path


def data_of(path: Path) -> Path:
    path.mkdir()
    rows = [{"prompt": p, "completion": c, "who": f"client {i % 2}"} for i, (p, c) in enumerate(QUESTIONS * 2)]
    for name in ("train", "test"):
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "bloom"])
def test_it_writes_what_the_merged_model_writes(family: str, tmp_path: Path) -> None:
    from lora_a2.data.written import Sample, Turn

    model = load_model(str(folder_of(tmp_path / "model", family)), task="causal-lm", max_length=60, dtype="float32")
    adapter = random_adapter(model.layout, rank=3, scale=1.0)
    samples = Samples(tuple(Sample((Turn("user", p), Turn("assistant", c))) for p, c in QUESTIONS))
    examples = model.encode(samples).examples
    with Pool(model.network) as pool:
        ours = write(model, pool, adapter, {}, examples)
    from lora_a2.model.merging import merge

    plain = model.pretrained_writer()
    before = copy.deepcopy(plain.whole.state_dict())
    merge(plain.backbone.module, adapter, {})
    assert any(not value.equal(before[name]) for name, value in plain.whole.state_dict().items())
    prompts = [prompt_of(ids, own) for ids, own in zip(examples.input_ids, examples.labels, strict=True)]
    assert all((own[len(p) :] != IGNORED).all() for p, own in zip(prompts, examples.labels, strict=True))
    expected = generate_texts(plain.whole, plain.backbone.tokenizer, prompts, SamplingOptions(LONGEST_ANSWER))
    assert ours == expected
    batch = model.network.pack([[np.arange(5, 9)]])
    assert model.network.hidden(batch).shape[1] == batch.input_ids.shape[1], "packed again afterwards"


def test_a_run_scores_what_its_model_writes(tmp_path: Path) -> None:
    """The scores of the last round are sacrebleu's on what the finished run's model writes to the same prompts."""
    config = RunConfig(
        task="causal-lm",
        data=str(data_of(tmp_path / "data")),
        client_column="who",
        model=str(folder_of(tmp_path / "model")),
        dtype="float32",
        num_server_rounds=1,
        generate=4,
        r=4,
        max_length=60,
        learning_rate=0.01,
        output_dir=str(tmp_path / "run"),
    )
    summary = launch(config, Observer())
    writer = load_writer(tmp_path / "run")
    samples = Samples(tuple(s for s in _test_samples(tmp_path / "data")))
    model = load_model(str(tmp_path / "model"), task="causal-lm", max_length=60)
    by_client = [
        i for k in range(2) for i in range(len(samples)) if i % 2 == k
    ]  # as the evaluation lays them end to end
    examples = model.encode(samples).of(np.array(by_client))
    part = examples.take(chosen_examples(examples, 4, 0))
    assert isinstance(part.labels, tuple)
    prompts = [prompt_of(ids, own) for ids, own in zip(part.input_ids, part.labels, strict=True)]
    texts = generate_texts(writer.model, writer.tokenizer, prompts, SamplingOptions(LONGEST_ANSWER))
    expected = text_metrics(text_statistics(texts, part.references))
    assert {name: summary.metrics[name] for name in expected} == pytest.approx(expected)


def _test_samples(folder: Path) -> Samples:
    from lora_a2.data.writing import load_samples

    return load_samples(folder).samples  # type: ignore[return-value]


def test_a_classifier_is_not_asked_to_write() -> None:
    with pytest.raises(ConfigError, match="a classifier writes nothing"):
        RunConfig(task="classification", generate=3)
