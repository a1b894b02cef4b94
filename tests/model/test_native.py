"""Heads of the models' own architectures: Transformers, PEFT and `pipeline` give our probabilities and label names."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

import lora_a2
from families import FAMILIES
from federation import LABELS, save_model, study_options, texts
from lora_a2.config.run import RunConfig
from lora_a2.config.setup import open_model
from lora_a2.core.types import Adapter, FloatArray, ServerState
from lora_a2.engine.work import TokenizedExamples
from lora_a2.errors import ConfigError, ModelError, RunError
from lora_a2.federation.observer import Observer
from lora_a2.federation.population import Client
from lora_a2.model.checkpoint import quiet
from lora_a2.model.classifier import require_head
from lora_a2.model.native import Start, fill, head_weights, prefix_of, take_head
from lora_a2.model.options import ModelOptions
from lora_a2.model.peft_io import read_adapter
from lora_a2.model.pretrained import Model, load_model
from lora_a2.runs.configured import config_of
from lora_a2.runs.directory import RunDirectory
from lora_a2.runs.jobs import launch
from lora_a2.runs.predict import load_predictor
from lora_a2.simulation import make_plan, simulate
from lora_a2.system.files import SUMS, write_all
from tiny import CONFIGS, PADDED, random_adapter

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

NO_CLASS = {"cohere", "cohere2", "granite", "rwkv", "mamba"}
OTHER_HEADS = {
    "longformer": "alone: choose --head linear",
    "nystromformer": "cannot be called .*; choose --head linear",
    "canine": "no table of token embeddings",
}
"""Longformer's first token sees all others for its head, and its window alone in the bare backbone."""
ENCODER_DECODERS = {"bart", "t5"}
KNOWN = sorted(FAMILIES.keys() - NO_CLASS - OTHER_HEADS.keys() - ENCODER_DECODERS)
TEXTS = texts()


def whole_of(family: str, seed: int = 0) -> PreTrainedModel:
    """A random classifier with three classes, its weights spread so that differences show."""
    torch.manual_seed(seed)
    config = copy.deepcopy(FAMILIES[family])
    config.num_labels = 3
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def start(values: dict[str, FloatArray] | None = None, labels: tuple[str, ...] = LABELS, seed: int = 0) -> Start:
    return Start(labels, seed, 1.0, values)


@pytest.mark.parametrize("family", KNOWN)
@torch.no_grad()
def test_the_head_of_every_family_gives_its_own_logits(family: str) -> None:
    """Also on sentences, and of weights, that it was not tried on."""
    whole = whole_of(family)
    intact = copy.deepcopy(whole)
    base = whole.base_model
    assert isinstance(base, PreTrainedModel)
    head = take_head(whole, frozenset(), LABELS, 0, start())
    assert prefix_of(intact) == head.prefix
    rng = np.random.default_rng(1)
    sentences = [torch.from_numpy(rng.integers(3, 60, (1, n))) for n in (3, 12, 1, 40)]
    hidden = [base(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0] for ids in sentences]
    vectors = torch.stack([{"mean": h.mean(0), "cls": h[0], "last": h[-1]}[head.pooling] for h in hidden])
    last = {name: torch.from_numpy(value) for name, value in head.values.items()}
    ours = torch.nn.functional.linear(head.features(vectors), last["weight"], last.get("bias"))
    own = torch.cat([intact(input_ids=ids, attention_mask=torch.ones_like(ids)).logits for ids in sentences])
    torch.testing.assert_close(ours, own, rtol=1e-4, atol=1e-4)
    tensors = head.tensors(head.values)
    assert all(np.array_equal(intact.get_parameter(name).numpy(), value) for name, value in tensors.items())
    fill(intact, {name: value + 1 for name, value in tensors.items()})
    again = take_head(intact, frozenset(), None, 0, start(tensors))
    assert all(np.array_equal(again.tensors(again.values)[name], value) for name, value in tensors.items())


@pytest.mark.parametrize("family", ["bert", "llama", "roberta"])
def test_weights_of_zeros_do_not_mislead(family: str) -> None:
    """They give the same logits whatever the head reads."""
    whole = whole_of(family)
    zeros = {name: np.zeros(tuple(p.shape), np.float32) for name, p in head_weights(whole).items()}
    head = take_head(whole, frozenset(), LABELS, 0, start(zeros))
    assert head.pooling == ("last" if family == "llama" else "cls")
    assert not any(value.any() for value in head.tensors(head.values).values())


def test_the_families_are_all_spoken_for() -> None:
    assert len(KNOWN) == 49
    for family in NO_CLASS:
        with pytest.raises(ModelError, match="Transformers has no classification head: choose --head linear"):
            require_head("m", FAMILIES[family])


@pytest.mark.parametrize("family", OTHER_HEADS)
def test_heads_that_are_not_understood(family: str) -> None:
    with pytest.raises(ModelError, match=OTHER_HEADS[family]):
        take_head(whole_of(family), frozenset(), LABELS, 0, start())


@pytest.mark.parametrize("family", [*CONFIGS, *PADDED])
@pytest.mark.parametrize("trained", [False, True])
def test_a_model_and_its_adapter(family: str, trained: bool, tmp_path: Path) -> None:
    """Training reaches the last layer alone; PEFT and Transformers, text by text, give the logits and the names."""
    source = str(save_model(tmp_path / "model", family))
    model = load_model(source, labels=LABELS, dtype="float32", head="native", train_head=trained)
    native = model.native
    assert native is not None
    assert model.layout.head == (tuple((n, v.shape) for n, v in native.values.items()) if trained else ())
    adapter = trained_adapter(model)
    lora_a2.save_result(tmp_path / "adapter", model, ServerState(1, adapter, 0))
    ours = model.network.predict(adapter, model.tokenize(TEXTS))
    np.testing.assert_allclose(load_predictor(tmp_path / "adapter").logits(TEXTS), ours, atol=1e-5)
    with quiet():
        whole = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter", num_labels=len(LABELS))
        tokenizer = AutoTokenizer.from_pretrained(source)
    with torch.no_grad():
        theirs = [whole.eval()(**tokenizer(text, return_tensors="pt")).logits[0].numpy() for text in TEXTS]
    np.testing.assert_allclose(np.stack(theirs), ours, atol=1e-5)


def trained_adapter(model: Model) -> Adapter:
    adapter = random_adapter(model.layout, rank=2)
    rng = np.random.default_rng(5)
    return replace(adapter, head={n: rng.standard_normal(shape, np.float32) for n, shape in model.layout.head})


PIPELINE = """
import json, sys, warnings
from transformers import pipeline
classify = pipeline("text-classification", model=sys.argv[1], top_k=None, device="cpu")
found = classify(json.load(sys.stdin), truncation=True, batch_size=int(sys.argv[2]))
assert "lora_a2" not in sys.modules
print(json.dumps(found))
"""


def by_pipeline(folder: Path, sentences: list[str], batch_size: int) -> list[dict[str, float]]:
    """Label → probability of each sentence, by a process without lora_a2."""
    made = subprocess.run(
        [sys.executable, "-c", PIPELINE, str(folder), str(batch_size)],
        input=json.dumps(sentences),
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    return [{entry["label"]: entry["score"] for entry in each} for each in json.loads(made.stdout)]


@pytest.mark.parametrize(
    ("family", "method", "trained", "batch_size"),
    [
        ("bert", "flora", False, 4),
        ("roberta", "full", True, 1),
        ("gpt2", "fedex-lora", False, 4),
        ("mpnet", "full", False, 1),
    ],
)
def test_a_merged_folder_is_a_classifier_of_transformers(
    family: str, method: str, trained: bool, batch_size: int, tmp_path: Path
) -> None:
    source = str(save_model(tmp_path / "model", family))
    model = load_model(source, labels=LABELS, dtype="float32", head="native", train_head=trained, max_length=5)
    ids = model.tokenize(TEXTS)
    examples = TokenizedExamples(ids, np.arange(len(ids)) % len(LABELS))
    clients = [Client(k, f"client {k}", examples, examples.take(np.arange(2))) for k in range(2)]
    plan = make_plan(model, clients, method, num_server_rounds=2, local_epochs=1, learning_rate=5e-3, batch_size=4)
    state = [state for state, _ in simulate(model, clients, plan)][-1]
    lora_a2.save_result(tmp_path / "result", model, state)
    folder = (tmp_path / "result").rename(tmp_path / "moved")
    assert not (folder / "head.safetensors").exists()
    predictor = load_predictor(folder)
    ours = predictor.predict(TEXTS)
    found = by_pipeline(folder, TEXTS, batch_size)
    theirs = np.array([[each[name] for name in predictor.label_names] for each in found])
    np.testing.assert_allclose(theirs, ours, atol=1e-5)
    config = AutoConfig.from_pretrained(folder)
    assert (config.id2label, config.label2id) == (dict(enumerate(LABELS)), {n: i for i, n in enumerate(LABELS)})
    model.network.set_base(state.base)
    logits = model.network.predict(state.adapter, model.tokenize(TEXTS))
    np.testing.assert_allclose(predictor.logits(TEXTS), logits, atol=1e-4)


def test_a_checkpoint_brings_its_head_along(tmp_path: Path) -> None:
    """Its last layer too, if its classes are the labels, in any order; else that is drawn anew."""
    folder = save_model(tmp_path, "roberta")
    config = copy.deepcopy(CONFIGS["roberta"])
    config.id2label = dict(enumerate(LABELS))
    own = AutoModelForSequenceClassification.from_config(config)
    own.save_pretrained(folder)
    other = load_model(folder, labels=("a", "b", "c"), dtype="float32", head="native")
    turned = load_model(folder, labels=LABELS[::-1], dtype="float32", head="native")
    more = load_model(folder, labels=("a", "b", "c", "d"), dtype="float32", head="native")
    dense = own.classifier.dense.weight.detach().numpy()
    for found in (other, turned, more):
        assert found.native is not None
        assert np.array_equal(found.native.earlier["classifier.dense.weight"], dense)
    last = own.classifier.out_proj.weight.detach().numpy()
    assert turned.native is not None and np.array_equal(turned.native.values["weight"], last[::-1])
    assert other.native is not None and not np.array_equal(other.native.values["weight"], last)
    with torch.no_grad():
        logits = [own.eval()(input_ids=torch.from_numpy(s)[None]).logits[0].numpy() for s in turned.tokenize(TEXTS)]
    ours = turned.network.predict(None, turned.tokenize(TEXTS))
    np.testing.assert_allclose(ours[:, ::-1], np.stack(logits), atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "modernbert", "mpnet", "xlnet", "llama"])
def test_a_loaded_classifier(family: str, tmp_path: Path) -> None:
    config = copy.deepcopy((CONFIGS | PADDED)[family])
    config.id2label = dict(enumerate(LABELS))
    torch.manual_seed(0)
    own = AutoModelForSequenceClassification.from_config(config).eval()
    tokenizer = AutoTokenizer.from_pretrained(save_model(tmp_path / "model", family))
    before = {name: value.clone() for name, value in own.state_dict().items()}
    model = load_model(own, tokenizer=tokenizer, labels=LABELS[::-1], dtype="float32", head="native")
    with torch.no_grad():
        logits = [own(input_ids=torch.from_numpy(s)[None]).logits[0].numpy() for s in model.tokenize(TEXTS)]
    ours = model.network.predict(None, model.tokenize(TEXTS))
    np.testing.assert_allclose(ours[:, ::-1], np.stack(logits), atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in own.state_dict().items())
    adapter = random_adapter(model.layout, rank=2)
    lora_a2.save_result(tmp_path / "result", model, ServerState(1, adapter, 0))
    back = load_predictor(tmp_path / "result", model=own, tokenizer=tokenizer)
    np.testing.assert_allclose(back.logits(TEXTS), model.network.predict(adapter, model.tokenize(TEXTS)), atol=1e-5)
    with pytest.raises(ModelError, match="has the labels"):
        load_model(own, tokenizer=tokenizer, labels=("a", "b", "c"), head="native")
    if family == "roberta":
        own.classifier.forward = lambda hidden: torch.ones(len(hidden), 3)
        with pytest.raises(ModelError, match="computes other logits"):
            load_model(own, tokenizer=tokenizer, labels=LABELS, head="native")


def test_a_loaded_backbone_is_the_one_of_its_folder(tmp_path: Path) -> None:
    folder = save_model(tmp_path, "roberta")
    with quiet():
        own, tokenizer = load_base(folder)
    found = [
        load_model(*given, labels=LABELS, dtype="float32", head="native", **more)  # type: ignore[arg-type]
        for given, more in (((folder,), {}), ((own,), {"tokenizer": tokenizer}))
    ]
    assert found[0].fingerprint == found[1].fingerprint == load_model(folder, labels=LABELS).fingerprint
    logits = [model.network.predict(None, model.tokenize(TEXTS)) for model in found]
    np.testing.assert_array_equal(*logits)


def load_base(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModel

    return AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("trained", [False, True])
def test_a_run_and_what_is_read_from_its_directory(trained: bool, tmp_path: Path) -> None:
    """Its configuration, with all defaults filled in, gives the same model again."""
    options = study_options(tmp_path) | {"model": str(save_model(tmp_path / "roberta", "roberta"))}
    launch(RunConfig(**options, head="native", train_head=trained, output_dir=str(tmp_path / "run")), Observer())
    run = RunDirectory.open(tmp_path / "run")
    config = config_of(run)
    assert (config.head, config.train_head, config.pooling) == ("native", trained, "cls")
    again = open_model(config, tuple(sorted(LABELS)))
    saved = read_adapter(run.adapter)
    assert again.native is not None
    drawn = again.native.tensors(again.native.values)
    moved = {name for name, value in saved.head.items() if not np.array_equal(value, drawn[name])}
    assert moved == ({"classifier.out_proj.weight", "classifier.out_proj.bias"} if trained else set())
    head = {n: saved.head[f"{again.native.last}.{n}"] for n, _ in again.layout.head}
    ours = again.network.predict(replace(saved.adapter, head=head), again.tokenize(TEXTS))
    np.testing.assert_allclose(load_predictor(tmp_path / "run").logits(TEXTS), ours, atol=1e-5)


def test_the_seed_gives_the_head(tmp_path: Path) -> None:
    folder = save_model(tmp_path, "roberta")
    one, same, other = (load_model(folder, labels=LABELS, head="native", seed=seed).native for seed in (1, 1, 2))
    assert one is not None and same is not None and other is not None
    for name, value in one.tensors(one.values).items():
        assert np.array_equal(same.tensors(same.values)[name], value)
        assert np.array_equal(other.tensors(other.values)[name], value) is (value.ndim == 1)
    assert one.modules == ("classifier",) and one.last == "classifier.out_proj"


def test_padding_at_a_text_s_end_is_passed_over_where_transformers_does(tmp_path: Path) -> None:
    """As of tokenizers that end every text with the token that pads."""
    for family, strips in (("llama", True), ("xlnet", False), ("bert", False)):
        model = load_model(save_model(tmp_path / family, family), labels=LABELS, head="native", dtype="float32")
        assert model.encoding.strips_padding is strips
        with_padding = model.tokenize(["w3 w4 [PAD] w5 [PAD] [PAD]", "[PAD]"])
        assert [len(ids) for ids in with_padding] == ([5, 1] if strips else [7, 2])


def test_what_is_refused(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", "roberta")
    for options, message in (
        ({"pooling": "mean"}, "reads the pooling cls, and mean was given"),
        ({"labels": ("one",)}, "needs two labels at least"),
        ({"head_values": {"weight": np.zeros((3, 16), np.float32)}}, "The head's weights are not those of a Roberta"),
        ({"head": "frozen", "train_head": True}, "head 'frozen' is not trained"),
        ({"head": "thawed"}, "Unknown head 'thawed': choose one of linear, native"),
    ):
        with pytest.raises(ModelError, match=message) as caught:
            load_model(folder, **{"labels": LABELS, "head": "native", **options})  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["a weight of the head", "a part of the head", "the factors", "classifier.json"])
def test_a_damaged_adapter(damage: str, tmp_path: Path) -> None:
    model = load_model(save_model(tmp_path / "model", "bert"), labels=LABELS, head="native", dtype="float32")
    lora_a2.save_result(tmp_path / "adapter", model, ServerState(1, random_adapter(model.layout, 2), 0))
    folder = Path(shutil.copytree(tmp_path / "adapter", tmp_path / "damaged"))
    tensors = load_file(folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    classifier = json.loads((folder / "classifier.json").read_text())
    assert config["modules_to_save"] == ["bert.pooler", "classifier"]
    if damage == "a weight of the head":
        del tensors["base_model.model.bert.pooler.dense.weight"]
    elif damage == "a part of the head":
        config["modules_to_save"] = ["classifier"]
    elif damage == "the factors":
        tensors = {name: value for name, value in tensors.items() if "lora_" not in name}
    else:
        del classifier["head"]
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "classifier.json").write_text(json.dumps(classifier))
    write_all(folder, {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name != SUMS})
    with pytest.raises((RunError, ModelError)) as caught:
        load_predictor(folder)
    assert "\n" not in str(caught.value)


def test_the_former_values_of_head() -> None:
    for value, trained in (("frozen", False), ("trained", True)):
        config, options = RunConfig(head=value), ModelOptions(head=value)  # type: ignore[arg-type]
        assert (config.head, config.train_head) == (options.head, options.train_head) == ("linear", trained)
    assert RunConfig(head="trained", train_head=False).train_head  # type: ignore[arg-type] # as in a Flower app's configuration
    with pytest.raises(ConfigError, match="head frozen is not trained"):
        RunConfig(head="frozen", train_head=True)  # type: ignore[arg-type]
    assert RunConfig(head="native", train_head=True).train_head
