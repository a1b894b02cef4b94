"""Layers and blocks that take the place of a model's own behave as those do, in every family that is taken at all."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from transformers import AutoModel
from transformers.pytorch_utils import Conv1D

from families import FAMILIES, LENGTH, VOCABULARY, make
from lora_a2.core.algebra import initial_adapter
from lora_a2.core.randomness import generator
from lora_a2.core.types import Layout, ModuleShape
from lora_a2.engine.calling import hidden_width
from lora_a2.engine.local import CohortTraining
from lora_a2.engine.lora import LoraLinear
from lora_a2.engine.network import Network
from lora_a2.engine.targets import block_lists, find_target_modules
from lora_a2.engine.work import ClientTask, TokenizedExamples, TrainingSettings, epoch_orders
from lora_a2.errors import ModelError
from lora_a2.model.pretrained import random_head
from lora_a2.tasks.classification.objective import Classification

REFUSED = {
    "bart": "has an encoder and a decoder",
    "t5": "has an encoder and a decoder",
    "nystromformer": "cannot be called with token ids and an attention mask alone",
    "reformer": "lets no gradient through to its layers",
    "convbert": "gives other results for a sentence of 6 tokens when it is padded",
    "canine": "has no table of token embeddings",
    "rwkv": "lets no gradient through to its layers",
    "squeezebert": "No linear layers inside transformer blocks",
    "mamba": r"computes with the weights of dt_proj itself .* leave it out with --target-modules in_proj,x_proj,out_proj",
}
"""Family → why it is not taken."""
QUICK = ("bert", "deberta", "longformer", "modernbert", "xlnet", "falcon", "gemma2", "gpt2", "mistral", "mpt")
TAKEN = [family for family in FAMILIES if family not in REFUSED]


def some(families: list[str]) -> list[object]:
    """All of them, those outside `QUICK` among the slow tests."""
    return [pytest.param(f, marks=[] if f in QUICK else [pytest.mark.slow]) for f in families]


def build(family: str, dtype: torch.dtype, modules: tuple[ModuleShape, ...] | None = None) -> Network:
    backbone = make(family)
    width = hidden_width(backbone)
    chosen = modules or find_target_modules(backbone)
    return Network(backbone, chosen, objective=Classification(random_head(3, width, 4.0, 0), "mean"), dtype=dtype)


def texts(count: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    rng = generator(seed, "test-texts")
    return tuple(rng.integers(5, VOCABULARY, rng.integers(3, LENGTH)) for _ in range(count))


def train(classifier: Network, modules: tuple[ModuleShape, ...], clients: int = 2) -> list[float]:
    """The losses of two clients after an epoch of B."""
    start = initial_adapter(Layout(modules), 2, 16.0, generator(0, "adapter"))
    tasks = []
    for k in range(clients):
        examples = TokenizedExamples(texts(6, k), np.arange(6) % 3)
        tasks.append(ClientTask(start, examples, None, epoch_orders(6, 1, generator(k, "train"))))
    settings = TrainingSettings(batch_size=3, learning_rate=1e-2, learning_rate_ratio=1.0, weight_decay=0.0)
    trained = []
    for task in tasks:
        trained += CohortTraining(classifier, [task], frozenset("B"), settings).run()
    assert all(any(f.B.any() for f in result.adapter.factors.values()) for result in trained)
    return [result.train_loss for result in trained]


def shapes(classifier: Network) -> tuple[ModuleShape, ...]:
    return tuple(ModuleShape(n, layer.d_out, layer.d_in) for n, layer in classifier.layers.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", some(TAKEN))
def test_every_family_trains(family: str, dtype: torch.dtype) -> None:
    classifier = build(family, dtype)
    assert all(np.isfinite(train(classifier, shapes(classifier))))


@pytest.mark.parametrize(("family", "reason"), REFUSED.items(), ids=REFUSED)
def test_families_that_cannot_be_called_so_are_refused_in_one_line(family: str, reason: str) -> None:
    with pytest.raises(ModelError, match=reason) as caught:
        build(family, torch.float32)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", some(TAKEN))
def test_skipped_blocks_answer_whatever_the_model_asks_them(family: str) -> None:
    backbone = make(family)
    (blocks,) = block_lists(backbone)
    last = len(backbone.get_submodule(blocks)) - 1  # type: ignore[arg-type]
    modules = tuple(m for m in find_target_modules(backbone) if m.name.startswith(f"{blocks}.{last}."))
    if not modules:
        pytest.skip("blocks are shared, so that the last has no layers of its own")
    classifier = build(family, torch.float32, modules)
    whole = build(family, torch.float32, modules)
    whole.prefix = lambda *args, **options: None  # type: ignore[method-assign]
    np.testing.assert_allclose(train(classifier, modules), train(whole, modules), rtol=1e-4)


@pytest.mark.parametrize("family", some(TAKEN))
def test_number_types_are_those_of_transformers_own_model(family: str, tmp_path: object) -> None:
    backbone = make(family)
    backbone.save_pretrained(str(tmp_path))
    own = AutoModel.from_pretrained(str(tmp_path), dtype=torch.bfloat16)
    expected = {n: v.dtype for n, v in [*own.named_buffers(), *own.named_parameters()]}
    try:
        own(input_ids=torch.arange(5, 12)[None])
    except RuntimeError as error:
        pytest.skip(f"Transformers' own model does not compute in bfloat16: {error}")
    classifier = build(family, torch.bfloat16)
    found = dict(classifier.backbone.named_buffers())
    assert {n: v.dtype for n, v in found.items()} == {n: expected[n] for n in found}
    rest = [n for n, p in classifier.backbone.named_parameters() if not n.endswith((".base", ".bias"))]
    named = dict(classifier.backbone.named_parameters())
    assert {n: named[n].dtype for n in rest} == {n: expected[n] for n in rest}


@pytest.mark.parametrize("family", ["llama", "gpt2", "modernbert"])
def test_bfloat16_is_as_exact_as_transformers_own(family: str, tmp_path: object) -> None:
    backbone = make(family)
    backbone.save_pretrained(str(tmp_path))
    own = AutoModel.from_pretrained(str(tmp_path), dtype=torch.bfloat16)
    classifier, exact = build(family, torch.bfloat16), build(family, torch.float32)
    sentences = texts(24)
    ours = exact_error = 0.0
    for sentence in sentences:
        with torch.no_grad():
            theirs = own(input_ids=torch.from_numpy(sentence)[None]).last_hidden_state.float().mean(1)
            right = exact.encode(exact.pack([[sentence]]))
            ours += float((classifier.encode(classifier.pack([[sentence]])) - right).abs().mean())
            exact_error += float((theirs - right).abs().mean())
    assert ours < 1.25 * exact_error


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_shows_what_the_one_in_its_place_would(dtype: torch.dtype) -> None:
    for family in ("bert", "gpt2"):
        plain = make(family)
        original = {m.name: copy.deepcopy(plain.get_submodule(m.name)) for m in find_target_modules(plain)}
        for name, layer in build(family, dtype).layers.items():
            wanted = original[name]
            torch.testing.assert_close(layer.weight, wanted.weight.to(dtype), rtol=0, atol=0)  # type: ignore[operator, union-attr, arg-type]
            if isinstance(wanted, Conv1D):
                assert layer.nf == wanted.nf
            else:
                assert (layer.in_features, layer.out_features) == (wanted.in_features, wanted.out_features)


def test_outputs_of_layers_that_share_an_input_can_be_changed_in_place() -> None:
    """As if each had been computed alone, forward and backward."""
    classifier = build("bert", torch.float32)
    names = [n for n in classifier.layers if n.endswith(("0.attention.self.query", "0.attention.self.key"))]
    x = torch.randn(1, 4, 32, requires_grad=True)
    layers: list[LoraLinear] = [classifier.layers[n] for n in names]
    outputs = [layer(x) for layer in layers]
    outputs[0].mul_(2)
    outputs[1].add_(1)
    (outputs[0] * outputs[1]).sum().backward()
    y = x.detach().clone().requires_grad_()
    a, b = (torch.nn.functional.linear(y, layer.base, layer.bias) for layer in layers)
    ((2 * a) * (b + 1)).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
