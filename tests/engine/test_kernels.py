"""The compiled kernels and the prepared weights against PyTorch's own products, over random shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.activations import ACT2FN

from lora_a2.core.randomness import generator
from lora_a2.engine.kernels import activations, attention, skinny
from lora_a2.engine.kernels.activations import TabulatedActivation
from lora_a2.engine.kernels.attention import Rule
from lora_a2.engine.kernels.frozen import FrozenWeight
from lora_a2.engine.packing import EVERYWHERE, PackedBatch, Sight, pack
from lora_a2.errors import ModelError
from lora_a2.system.machine import processor_flags
from tiny import backbone, classifier

DTYPES = [torch.float32, torch.bfloat16]


def _normal(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(rng.normal(size=shape).astype(np.float32))


def _close(got: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    scale = float(expected.abs().max()) or 1.0
    assert float((got.double() - expected.double()).abs().max()) < scale * (2e-2 if dtype == torch.bfloat16 else 2e-5)


def test_the_kernels_are_there() -> None:
    """The tests' own installation has a C compiler; without this, everything below would compare PyTorch with itself."""
    assert attention.compiled() and activations.kernel is not None
    if "avx512_bf16" not in processor_flags():
        pytest.skip("this processor has no AVX-512 BF16")
    assert skinny.compiled()


def _obvious(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, batch: PackedBatch, rule: Rule) -> Tensor:
    """Each sentence and head alone, by the formula."""
    out = torch.zeros_like(q)
    for start, length in zip(batch.starts, batch.lengths, strict=True):
        rows = slice(int(start), int(start + length))
        ahead = torch.arange(length) - torch.arange(length)[:, None]
        for h in range(q.shape[1]):
            scores = rule.scaling * q[rows, h] @ k[rows, h].t()
            if bias is not None:
                scores = scores + bias[h, :length, :length]
            if rule.softcap is not None:
                scores = rule.softcap * torch.tanh(scores / rule.softcap)
            unseen = (ahead > rule.sight.right) | (ahead < -rule.sight.left)
            out[rows, h] = scores.masked_fill(unseen, float("-inf")).softmax(-1) @ v[rows, h]
    return out


WINDOWS = st.none() | st.integers(1, 45)


@settings(max_examples=80, deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=5), min_size=1, max_size=3),
    heads=st.integers(1, 4),
    width=st.sampled_from([16, 32, 48]),
    sight=st.builds(Sight.within, WINDOWS, st.booleans()),
    softcap=st.none() | st.sampled_from([0.5, 3.0, 50.0]),
    biased=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    shared=st.booleans(),
    seed=st.integers(0, 99),
)
def test_attention_equals_the_formula(
    lengths: list[list[int]],
    heads: int,
    width: int,
    sight: Sight,
    softcap: float | None,
    biased: bool,
    dtype: torch.dtype,
    shared: bool,
    seed: int,
) -> None:
    """Kernel, PyTorch's products, and the formula in float64: windows, caps and biases, forward and backward."""
    rng = generator(seed, "test-kernels")
    batch = pack([[np.ones(n, np.int64) for n in client] for client in lengths], pooling="mean")
    tokens, longest = batch.input_ids.shape[1], max(max(client) for client in lengths) + 2
    parts = _normal(rng, tokens, 3 * heads * width).to(dtype)
    bias = _normal(rng, heads, longest, longest).to(dtype) if biased else None
    upstream = _normal(rng, tokens, heads, width).to(dtype)
    upstream[batch.filler] = 0
    rule = Rule(0.3, sight, softcap)

    def run(function: Callable[..., Tensor], *extra: Any, wide: bool = False) -> tuple[Tensor, ...]:
        source = (parts.double() if wide else parts).clone().requires_grad_()
        q, k, v = (t.unflatten(1, (heads, width)) for t in source.split(heads * width, 1))
        if not shared:  # as rotary embeddings leave them: heads apart
            q, k = (t.transpose(0, 1).contiguous().transpose(0, 1) for t in (q, k))
        out = function(q, k, v, bias.double() if bias is not None and wide else bias, *extra)
        return out.detach(), *torch.autograd.grad(out, source, upstream.to(out.dtype))

    expected = run(_obvious, batch, rule, wide=True)
    compiled = run(attention._CompiledAttention.apply, batch, rule)
    products = run(attention._PackedAttention.apply, batch.heads(heads, sight, dtype), rule)
    for got in (compiled, products):
        for g, e in zip(got, expected, strict=True):
            _close(g, e, dtype)
            assert not g[batch.filler].any()


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_the_gradient_of_a_bias(softcap: float | None) -> None:
    """Full fine-tuning trains it; then PyTorch's products are taken."""
    rng = generator(0, "test-kernels")
    batch = pack([[np.ones(n, np.int64) for n in client] for client in ([5, 9], [30])], pooling="mean")
    tokens, rule = batch.input_ids.shape[1], Rule(0.3, Sight.within(4, True), softcap)
    q, k, v, upstream = (_normal(rng, tokens, 2, 16) for _ in range(4))
    bias, upstream = _normal(rng, 2, 31, 31).requires_grad_(), upstream.index_fill(0, batch.filler, 0)
    got = attention.attend(*(t.transpose(0, 1)[None] for t in (q, k, v)), batch, rule, bias)[0]
    expected = _obvious(q, k, v, bias, batch, rule)
    for out in (got, expected):
        _close(out.detach(), expected.detach(), torch.float32)
    _close(*(torch.autograd.grad(out, bias, upstream)[0] for out in (got, expected)), torch.float32)


def test_attention_of_one_token_and_of_large_scores() -> None:
    batch = pack([[np.ones(1, np.int64), np.ones(3, np.int64)]], pooling="mean")
    q, k, v = (100 * _normal(generator(i, "test-kernels"), batch.input_ids.shape[1], 1, 16) for i in range(3))
    for rule in (Rule(1.0), Rule(1.0, softcap=50.0)):
        out = attention._CompiledAttention.apply(q, k, v, None, batch, rule)
        expected = attention._PackedAttention.apply(q, k, v, None, batch.heads(1, EVERYWHERE, torch.float32), rule)
        _close(out, expected, torch.float32)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_values_that_are_not_numbers_stay_so(softcap: float | None) -> None:
    batch = pack([[np.ones(3, np.int64)]], pooling="mean")
    q, k, v = (torch.ones(batch.input_ids.shape[1], 1, 16) for _ in range(3))
    q[1] = float("nan")
    out = attention._CompiledAttention.apply(q, k, v, None, batch, Rule(1.0, softcap=softcap))
    assert out[1].isnan().all() and out[0].isfinite().all()


def test_what_packed_attention_does_not_know_is_refused() -> None:
    batch = pack([[np.ones(3, np.int64)]], pooling="mean")
    q = torch.ones(1, 2, batch.input_ids.shape[1], 16)
    module = torch.nn.Module()

    def call(**given: Any) -> Tensor:
        inputs: dict[str, Any] = {"query": q, "key": q, "value": q, "attention_mask": None, "packed": batch} | given
        return attention.packed_attention(module, **inputs)[0]

    plain = call()
    neutral = {
        "dropout": 0.0,
        "s_aux": None,
        "output_attentions": False,
        "position_ids": torch.ones(1),
        "sliding_window": None,
    }
    assert torch.equal(call(**neutral), plain)
    for name, value in {
        "s_aux": torch.ones(2), "dropout": 0.1, "position_bias": torch.zeros(1), "cu_seq_lens_q": torch.ones(2),
        "never_heard_of": 3, "output_attentions": True,
    }.items():  # fmt: skip
        with pytest.raises(ModelError, match=name):
            call(**{name: value})
    with pytest.raises(ModelError, match="mask of its own"):
        call(attention_mask=torch.zeros(1, 1, 1, 3))
    with pytest.raises(ModelError, match="packed rows"):
        call(value=q[..., :8])
    with pytest.raises(ModelError, match="packed rows"):
        call(key=q[:, :, 1:])


@settings(max_examples=60, deadline=None)
@given(
    clients=st.integers(1, 3),
    tokens=st.integers(1, 70),
    ranks=st.sampled_from([1, 3, 8, 16, 24]),
    width=st.sampled_from([7, 32, 96]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_skinny_products(clients: int, tokens: int, ranks: int, width: int, dtype: torch.dtype, seed: int) -> None:
    rng = generator(seed, "test-kernels")
    wide = _normal(rng, clients * tokens, width + 5).to(dtype)
    x, a = wide[:, :width], _normal(rng, clients, ranks, width).to(dtype)
    both = _normal(rng, clients, tokens, ranks + 8).to(dtype)
    z = both[:, :, :ranks]
    xk = x.double().view(clients, tokens, width) if clients == 1 else x.double().unflatten(0, (clients, tokens))
    _close(skinny.down(x, a), xk @ a.double().transpose(1, 2), dtype)
    total, before = _normal(rng, clients, ranks, width), wide.clone()
    expected = total.double() + z.double().transpose(1, 2) @ xk
    skinny.outer(total, z, x)
    _close(total, expected, dtype)
    skinny.up(x, z, a)
    _close(x, before[:, :width].double() + (z.double() @ a.double()).flatten(0, 1), dtype)
    assert torch.equal(wide[:, width:], before[:, width:])


@pytest.mark.parametrize("name", ["gelu", "gelu_new", "silu"])
def test_tabulated_activation(name: str) -> None:
    """Every bfloat16 there is, forward to the bit."""
    original = ACT2FN[name]
    table = TabulatedActivation(original)
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    assert torch.equal(table(x).view(torch.int16), original(x).view(torch.int16))
    x = x[x.isfinite() & (x.abs() < 100)].requires_grad_()
    upstream = _normal(generator(0, "test-kernels"), len(x)).bfloat16()
    (got,) = torch.autograd.grad(table(x), x, upstream)
    wide = x.detach().float().requires_grad_()
    (expected,) = torch.autograd.grad(original(wide), wide, upstream.float())
    assert torch.equal(got, expected.bfloat16())


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
def test_activations_are_tabulated(family: str) -> None:
    engine, _ = classifier(backbone(family), family, dtype=torch.bfloat16)
    assert any(isinstance(m, TabulatedActivation) for m in engine.backbone.modules())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
def test_frozen_weight(dtype: torch.dtype, bias: bool) -> None:
    rng = generator(0, "test-kernels")
    weight, x, grad = _normal(rng, 40, 24).to(dtype), _normal(rng, 2, 9, 24).to(dtype), _normal(rng, 2, 9, 40).to(dtype)
    b = _normal(rng, 40).to(dtype) if bias else None
    frozen, x = FrozenWeight(weight, b), x.requires_grad_()
    y = frozen(x)
    expected = x.double() @ weight.double().t() + (0 if b is None else b.double())
    _close(y.detach(), expected.detach(), dtype)
    (dx,) = torch.autograd.grad(y, x, grad)
    _close(dx, grad.double() @ weight.double(), dtype)
