"""Models that the user has loaded already: the same as from their folder, copied, checked, saved and read back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5Config,
    T5Model,
)

import lora_a2
from federation import LABELS, save_model, texts
from lora_a2.core.types import ServerState
from lora_a2.errors import ModelError, RunError
from lora_a2.federation.population import Client
from lora_a2.model.checkpoint import quiet
from lora_a2.model.given import UNNAMED
from lora_a2.model.options import ModelKeywords, ModelOptions
from lora_a2.model.pretrained import Model, load_model
from lora_a2.runs.predict import load_predictor
from tiny import CONFIGS, PADDED, random_adapter

FAMILIES = [*CONFIGS, *PADDED]


def loaded(folder: Path, kind: Any = AutoModel, **options: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    with quiet():
        return kind.from_pretrained(str(folder), **options), AutoTokenizer.from_pretrained(str(folder))


def classifying(family: str = "llama", names: tuple[str, ...] = LABELS, seed: int = 3) -> PreTrainedModel:
    """A random model for sequence classification, whose classes have these names."""
    torch.manual_seed(seed)
    config = copy.deepcopy(CONFIGS[family])
    config.id2label = dict(enumerate(names))
    if config.pad_token_id is None:
        config.pad_token_id = 0
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def snapshot(model: nn.Module) -> tuple[dict[str, torch.Tensor], list[tuple[str, type, bool]], list[bool], str]:
    """All of a model that could be changed: weights, layers with their modes, what is trained, configuration."""
    values = {name: value.clone() for name, value in model.state_dict().items()}
    layers = [(name, type(module), module.training) for name, module in model.named_modules()]
    return values, layers, [p.requires_grad for p in model.parameters()], str(model.config)


def same(one: Any, other: Any) -> bool:
    return one[1:] == other[1:] and all(torch.equal(value, other[0][name]) for name, value in one[0].items())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("given"))


def refused(message: str, model: Any, tokenizer: Any, **options: Any) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        load_model(model, tokenizer=tokenizer, **{"labels": LABELS, **options})
    assert "\n" not in str(caught.value)


# --- the same as from a folder


@pytest.mark.parametrize("family", FAMILIES)
def test_a_loaded_model_is_the_one_of_its_folder(tmp_path: Path, family: str) -> None:
    folder = save_model(tmp_path, family)
    expected = load_model(str(folder), labels=LABELS, dtype="float32")
    model, tokenizer = loaded(folder)
    before = snapshot(model.train())
    found = load_model(model, tokenizer=tokenizer, labels=LABELS, dtype="float32")
    assert (found.name, found.fingerprint, found.layout) == (str(folder), expected.fingerprint, expected.layout)
    assert (found.max_length, found.full_parameters) == (expected.max_length, expected.full_parameters)
    assert found.network.objective.pooling == expected.network.objective.pooling
    adapter = random_adapter(found.layout, rank=2)
    ours, theirs = (m.network.predict(adapter, m.tokenize(texts())) for m in (found, expected))
    np.testing.assert_array_equal(ours, theirs)
    assert same(snapshot(model), before), "the user's own model has changed"


def test_paths_and_options(folder: Path) -> None:
    path = load_model(folder, labels=LABELS, options=ModelOptions(dtype="float32", max_length=9), max_length=7)
    assert (path.name, path.max_length, path.network.dtype) == (str(folder), 7, torch.float32)
    written = {name: value.__forward_arg__ for name, value in ModelKeywords.__annotations__.items()}
    assert written == {field.name: field.type for field in fields(ModelOptions)}
    for wrong in ({"head": "thawed"}, {"pooling": "max"}, {"max_length": 0}):
        with pytest.raises(ModelError):
            load_model(folder, labels=LABELS, **wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="poolign"):
        load_model(folder, labels=LABELS, poolign="cls")  # type: ignore[call-arg]
    with pytest.raises(ModelError, match="twice"):
        load_model(folder, labels=("a", "b", "a"))


@pytest.mark.parametrize("prepare", [nn.Module.half, nn.Module.bfloat16, nn.Module.double])
def test_any_float_type_is_copied_in_float32(folder: Path, prepare: Callable[[nn.Module], nn.Module]) -> None:
    """Rotary frequencies and the like come anew from the configuration: a cast of them would stay."""
    for family in ("bert", "llama"):
        model = AutoModel.from_config(copy.deepcopy(CONFIGS[family])).eval()
        _, tokenizer = loaded(folder)
        prepare(model)
        before = snapshot(model)
        found = load_model(model, tokenizer=tokenizer, labels=LABELS, dtype="float32")
        assert {p.dtype for p in found.network.backbone.parameters()} == {torch.float32}
        assert all(b.dtype == torch.float32 for b in found.network.backbone.buffers() if b.is_floating_point())
        assert same(snapshot(model), before)


def test_two_models_of_one_do_not_feel_each_other(folder: Path) -> None:
    """Nor what the user does with the original afterwards."""
    model, tokenizer = loaded(folder)
    one, other = (load_model(model, tokenizer=tokenizer, labels=LABELS, dtype="float32") for _ in range(2))
    sentences = one.tokenize(texts())
    expected = other.network.predict(None, sentences)
    one.network.predict(random_adapter(one.layout, rank=2), sentences)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    tokenizer.pad_token = "w3"
    np.testing.assert_array_equal(other.network.predict(None, sentences), expected)
    assert other.tokenizer.pad_token == "[PAD]"


def test_a_tokenizer_without_padding_is_not_given_one(folder: Path) -> None:
    model, tokenizer = loaded(folder)
    tokenizer.pad_token, tokenizer.eos_token = None, "w3"
    found = load_model(model, tokenizer=tokenizer, labels=LABELS)
    assert (found.tokenizer.pad_token, tokenizer.pad_token) == ("w3", None)


# --- heads


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_the_head_of_a_classifier_is_used(folder: Path, family: str, order: tuple[int, ...]) -> None:
    """The logits are the model's own, class by class, in the order of `labels`."""
    model, (_, tokenizer) = classifying(family), loaded(folder)
    labels = tuple(LABELS[i] for i in order)
    found = load_model(model, tokenizer=tokenizer, labels=labels, dtype="float32", head="trained")
    assert found.network.objective.pooling == "last"
    assert found.layout.head == (("weight", (3, 16)), ("bias", (3,)))
    sentences = found.tokenize(texts())
    with torch.no_grad():
        own = [model.eval()(input_ids=torch.from_numpy(s)[None]).logits[0].numpy() for s in sentences]
    ours = found.network.predict(None, sentences)
    np.testing.assert_allclose(ours, np.stack(own)[:, list(order)], atol=1e-4)


def test_class_numbers_are_the_labels_of_a_head_without_names(folder: Path) -> None:
    model, (_, tokenizer) = classifying(names=("LABEL_0", "LABEL_1", "LABEL_2")), loaded(folder)
    found = load_model(model, tokenizer=tokenizer, labels=("0", "1", "2"), dtype="float32")
    np.testing.assert_array_equal(found.network.objective.head["weight"].numpy(), model.score.weight.detach().numpy())
    refused("set model.config.id2label to what they mean, or give the backbone", model, tokenizer)


def test_heads_that_do_not_fit(folder: Path) -> None:
    model, (_, tokenizer) = classifying(), loaded(folder)
    refused("has the labels broken, late, lost, and labels are late, lost", model, tokenizer, labels=("late", "lost"))
    refused("head_values and head_scale are for a new head", model, tokenizer, head_scale=1.0)
    refused(
        "not one linear layer on the pooling mean: give head='native', or the backbone",
        model,
        tokenizer,
        pooling="mean",
    )
    for family in ("bert", "roberta", "distilbert", "modernbert", "mpnet"):
        other = classifying(family)
        refused(rf"The head of {type(other).__name__} is not one linear layer", other, tokenizer)
        assert load_model(other.base_model, tokenizer=tokenizer, labels=LABELS).label_names == LABELS
    causal = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS["llama"]))
    refused(r"LlamaForCausalLM is neither a bare backbone .* load_model\(model.base_model", causal, tokenizer)


# --- refused


def test_what_is_no_model_or_no_tokenizer(folder: Path) -> None:
    model, tokenizer = loaded(folder)
    refused("A Linear is no model of Transformers", nn.Linear(2, 2), tokenizer)
    refused("A int is no model", 3, tokenizer)
    refused(r"BertModel needs its tokenizer, and none was given: load_model\(model, tokenizer=", model, None)
    refused("needs its tokenizer, and a str was given", model, "bert")
    refused("tokenizer is for a loaded model", str(folder), tokenizer)
    seq2seq = T5Model(T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    refused("has an encoder and a decoder", seq2seq, tokenizer)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_adapters_are_refused_wherever_they_are(folder: Path) -> None:
    model, tokenizer = loaded(folder)
    wrapped = get_peft_model(model, LoraConfig(target_modules=["query"]))
    for given in (wrapped, wrapped.get_base_model(), model):
        refused("has PEFT adapters: give what its merge_and_unload", given, tokenizer)
    assert load_model(wrapped.merge_and_unload(), tokenizer=tokenizer, labels=LABELS).name == str(folder)
    integrated, _ = loaded(folder)
    integrated.add_adapter(LoraConfig(target_modules=["query"]))
    refused("has PEFT adapters", integrated, tokenizer)


def test_weights_that_are_no_floats_or_not_there(folder: Path) -> None:
    model, tokenizer = loaded(folder)
    quantised = copy.deepcopy(model)
    layer = quantised.encoder.layer[0].output.dense
    layer.weight = nn.Parameter(layer.weight.detach().to(torch.int8), requires_grad=False)
    refused("has quantised weights: load it without a quantization_config", quantised, tokenizer)
    refused("weights that are not loaded", copy.deepcopy(model).to("meta"), tokenizer)


def test_a_model_that_is_not_what_its_configuration_says(folder: Path) -> None:
    model, tokenizer = loaded(folder)
    shorter, other, wider = (copy.deepcopy(model) for _ in range(3))
    shorter.encoder.layer = shorter.encoder.layer[:1]
    refused("BertModel has other layers than its configuration says .*: change model.config too", shorter, tokenizer)
    shorter.config.num_hidden_layers = 1
    assert len(load_model(shorter, tokenizer=tokenizer, labels=LABELS).layout.modules) == 6
    other.encoder.layer[1].intermediate.intermediate_act_fn = nn.ReLU()
    refused("BertModel computes something else than its configuration and weights say", other, tokenizer)
    wider.resize_token_embeddings(60)
    assert load_model(wider, tokenizer=tokenizer, labels=LABELS).name == str(folder)
    wider.resize_token_embeddings(20)
    refused("has embeddings for 20 tokens, but its tokenizer has one with the id 49", wider, tokenizer)


# --- saved and read back


def trained_state(model: Model, moved: bool = False) -> ServerState:
    adapter = random_adapter(model.layout, rank=2)
    module = model.layout.modules[0]
    base = {f"{module.name}.weight": np.full((module.d_out, module.d_in), 0.01, np.float32)} if moved else {}
    return ServerState(1, adapter, 0, base_delta=base)


@pytest.mark.parametrize("kind", ["bare", "classifier"])
@pytest.mark.parametrize("named", [True, False])
def test_what_is_saved_is_read_back_with_the_model(tmp_path: Path, folder: Path, kind: str, named: bool) -> None:
    own, tokenizer = loaded(folder)
    if kind == "classifier":
        own = classifying()
    if kind == "classifier" and named:
        own.base_model.save_pretrained(tmp_path / "base")
        tokenizer.save_pretrained(tmp_path / "base")
        own.config._name_or_path = str(tmp_path / "base")
    elif not named:
        own.config._name_or_path = ""
    model = load_model(own, tokenizer=tokenizer, labels=LABELS, dtype="float32")
    state = trained_state(model)
    lora_a2.save_result(tmp_path / "result", model, state)
    expected = model.network.predict(state.adapter, model.tokenize(texts()))
    given = load_predictor(tmp_path / "result", model=own, tokenizer=tokenizer)
    np.testing.assert_allclose(given.logits(texts()), expected, atol=1e-5)
    if named:
        np.testing.assert_allclose(load_predictor(tmp_path / "result").logits(texts()), expected, atol=1e-5)
        return
    assert model.name == UNNAMED
    with pytest.raises(RunError, match=r"no name to load it by.*load_predictor\(…, model=…, tokenizer=…\)") as caught:
        load_predictor(tmp_path / "result")
    assert "\n" not in str(caught.value)


def test_a_base_model_that_is_another_or_gone(tmp_path: Path, folder: Path) -> None:
    own, tokenizer = loaded(folder)
    with torch.no_grad():
        own.encoder.layer[0].output.dense.weight.mul_(1.5)
    model = load_model(own, tokenizer=tokenizer, labels=LABELS, dtype="float32")
    lora_a2.save_result(tmp_path / "result", model, trained_state(model))
    with pytest.raises(RunError, match=r"are not those that .* In Python the base model can be given"):
        load_predictor(tmp_path / "result")
    assert load_predictor(tmp_path / "result", model=own, tokenizer=tokenizer).predict(["w3"]).shape == (1, 3)
    with pytest.raises(
        RunError, match=r"are not those that .* trained on \(fingerprint [^.]*\): restore them, or train anew\.$"
    ):
        load_predictor(tmp_path / "result", model=loaded(folder)[0], tokenizer=tokenizer)
    own.config._name_or_path = "/no/such/folder"
    lost = load_model(own, tokenizer=tokenizer, labels=LABELS, dtype="float32", pooling="mean")
    lora_a2.save_result(tmp_path / "lost", lost, trained_state(lost))
    with pytest.raises(ModelError, match=r"there is no such folder\. In Python the base model can be given"):
        load_predictor(tmp_path / "lost")
    refused(r"no/such/folder.* Or give pooling, one of", own, tokenizer)


def test_a_merged_model_of_a_given_one(tmp_path: Path, folder: Path) -> None:
    """It is whole, so that nothing has to be given to read it; the original must still be what it was."""
    own, tokenizer = loaded(folder)
    own.config._name_or_path = ""
    model = load_model(own, tokenizer=tokenizer, labels=LABELS, dtype="float32")
    state = trained_state(model, moved=True)
    lora_a2.save_result(tmp_path / "result", model, state)
    model.network.set_base(state.base)
    expected = model.network.predict(state.adapter, model.tokenize(texts()))
    np.testing.assert_allclose(load_predictor(tmp_path / "result").logits(texts()), expected, atol=1e-5)
    with pytest.raises(RunError, match="holds the whole model: leave model and tokenizer out"):
        load_predictor(tmp_path / "result", model=own, tokenizer=tokenizer)
    with torch.no_grad():
        own.encoder.layer[0].output.dense.weight.mul_(1.5)
    with pytest.raises(RunError, match="are not those that the run was trained on"):
        lora_a2.save_result(tmp_path / "again", model, state)


def test_a_federation_of_a_given_model(folder: Path) -> None:
    """Byte for byte what the folder gives."""
    own, tokenizer = loaded(folder)
    rows = {"text": texts(24), "label": list(LABELS) * 8}
    states = []
    for model in (
        load_model(str(folder), labels=LABELS, dtype="float32"),
        load_model(own, tokenizer=tokenizer, labels=LABELS, dtype="float32"),
    ):
        clients: tuple[Client, ...] = lora_a2.make_clients(pd.DataFrame(rows), model, num_clients=2)
        plan = lora_a2.make_plan(model, clients, num_server_rounds=2, local_epochs=1, r=4, learning_rate=0.01)
        states.append([state for state, _ in lora_a2.simulate(model, clients, plan)][-1])
    for name, factors in states[0].adapter.factors.items():
        np.testing.assert_array_equal(factors.A, states[1].adapter.factors[name].A)
        np.testing.assert_array_equal(factors.B, states[1].adapter.factors[name].B)
