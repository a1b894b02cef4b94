"""Base weights of 4 bits: what is computed with them is what is computed with the weights that they unpack to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from test_engine import SETTINGS, _relative

from cli_helpers import one_error
from lora_a2.cli import main
from lora_a2.core.randomness import generator
from lora_a2.core.types import Layout
from lora_a2.engine.kernels.frozen import FrozenWeight
from lora_a2.engine.kernels.packed import Packed, PackedWeight
from lora_a2.engine.local import train_cohort
from lora_a2.engine.network import Network
from lora_a2.engine.targets import find_target_modules
from lora_a2.engine.work import ClientTask, epoch_orders
from lora_a2.errors import ModelError
from lora_a2.model.causal import find_head
from lora_a2.tasks.causal_lm.objective import CausalLM
from run_files import contents
from tiny import random_adapter
from writers import whole_model, writing_options, written

pytest.importorskip("bitsandbytes", reason="weights of 4 bits are an extra")
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
]


@example(seed=129, members=2, d_in=2, merged=False, biased=False)  # with a weight of shape (1, 2)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 70), st.booleans(), st.booleans())
def test_products_are_those_of_the_unpacked_weights(
    seed: int, members: int, d_in: int, merged: bool, biased: bool
) -> None:
    torch.manual_seed(seed)
    sizes = torch.randint(1, 50, (members,)).tolist()
    packed = [Packed(torch.randn(size, d_in)) for size in sizes]
    pairs = [(torch.randn(size, 2), torch.randn(2, d_in)) if merged else None for size in sizes]
    dense = torch.cat(
        [
            p.dense(torch.float32) + (0 if pair is None else pair[0] @ pair[1])
            for p, pair in zip(packed, pairs, strict=True)
        ]
    )
    bias = torch.randn(sum(sizes)) if biased else None
    one, other = PackedWeight(packed, pairs, bias, torch.float32), FrozenWeight(dense, bias)
    x = torch.randn(2, 5, d_in, requires_grad=True)
    torch.testing.assert_close(one.weight, other.weight, rtol=1e-4, atol=1e-4)
    results = []
    for frozen in (one, other):
        y = frozen(x)
        (gradient,) = torch.autograd.grad((y * torch.cos(y.detach())).sum(), x)
        results.append((y.detach(), gradient))
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-3)


def test_a_packed_weight_is_near_and_small() -> None:
    """Half a byte a value and its scale, at the error that NF4 has on normal numbers."""
    torch.manual_seed(0)
    weight = torch.randn(256, 512)
    packed = Packed(weight)
    assert 0.05 < float((packed.dense(torch.float32) - weight).norm() / weight.norm()) < 0.12
    assert packed._values.numel() * packed._values.element_size() == weight.numel() // 2


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
@pytest.mark.parametrize("trainable", ["A", "B", "AB"])
def test_training_is_that_of_the_unpacked_weights(family: str, trainable: str, device: str) -> None:
    whole, unpacked = whole_model(family).to(device), whole_model(family).to(device)
    modules = find_target_modules(whole.base_model)
    for module in modules:
        weight = unpacked.base_model.get_submodule(module.name).weight
        turned = tuple(weight.shape) != (module.d_out, module.d_in) or family == "gpt2"
        dense = Packed(weight.detach().t().contiguous() if turned else weight.detach()).dense(torch.float32)
        weight.data = dense.t().contiguous() if turned else dense
    one, other = (
        Network(w.base_model, modules, objective=CausalLM(find_head(w, w.base_model)), load_in_4bit=in_4bit)
        for w, in_4bit in ((whole, True), (unpacked, False))
    )
    start = random_adapter(Layout(modules), rank=3)
    for k, count in enumerate((7, 4)):
        data = written(count, seed=k)
        task = ClientTask(start, data, None, epoch_orders(count, 2, generator(k, "orders")))
        packed, dense = (train_cohort(n, [task], frozenset(trainable), SETTINGS)[0] for n in (one, other))  # type: ignore[arg-type]
        assert _relative(packed.adapter, dense.adapter, task.start) < 1e-3
        np.testing.assert_allclose(one.measure(start, data), other.measure(start, data), rtol=1e-4)
    with pytest.raises(ModelError, match="cannot be moved"):
        one.set_base({modules[0].name: np.zeros((modules[0].d_out, modules[0].d_in), np.float32)})


def test_a_run_with_4_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same bytes after a kill; the base is another one than without; methods that move it are refused."""
    given = writing_options(tmp_path)
    flags = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    runs = {name: tmp_path / name for name in ("whole", "first", "plain")}
    assert main(["run", *flags, "--load-in-4bit", "--output-dir", str(runs["whole"])]) == 0
    assert main(["run", *flags, "--output-dir", str(runs["plain"])]) == 0
    shorter = ["--num-server-rounds" if part == "--num-server-rounds" else part for part in flags]
    shorter[shorter.index("--num-server-rounds") + 1] = "1"
    assert main(["run", *shorter, "--load-in-4bit", "--output-dir", str(runs["first"])]) == 0
    assert main(["resume", str(runs["first"]), "--num-server-rounds", "2"]) == 0
    whole, first, plain = (contents(run) for run in runs.values())
    weights = "adapter/adapter_model.safetensors"
    assert whole[weights] == first[weights] != plain[weights]
    assert main(["evaluate", str(runs["whole"])]) == 0
    capsys.readouterr()
    assert main(["run", *flags, "--load-in-4bit", "--method", "flora", "--output-dir", str(tmp_path / "no")]) == 2
    assert "flora moves base weights" in one_error(capsys)


def test_without_what_packs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = writing_options(tmp_path)
    flags = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert main(["run", *flags, "--load-in-4bit", "--quiet", "--output-dir", str(tmp_path / "no")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("lora-a2: error: ")
    assert "bitsandbytes is not installed" in error and "lora-a2[quantized]" in error


def test_commands_say_nothing_of_its_kernels() -> None:
    code = "from lora_a2.cli import main; main(['methods']); import bitsandbytes"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "kernels" not in done.stderr
