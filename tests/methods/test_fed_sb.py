"""Fed-SB: its start, its bytes, and what becomes of it outside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel

from federation import tiny_model
from lora_a2.core.algebra import delta_weight
from lora_a2.core.types import Factors, ServerState, weight_name
from lora_a2.methods.fed_sb import principal
from lora_a2.model.peft_io import read_adapter
from lora_a2.runs.jobs import save_result
from lora_a2.simulation import make_plan, simulate
from tiny import backbone, clients, model_of


def test_the_start_is_the_nearest_product_of_its_rank() -> None:
    """Eckart and Young: what is left of ΔW₀ has the singular values beyond r; B and A have orthonormal columns and rows."""
    rng = np.random.default_rng(0)
    change = -1e-3 * np.sign(rng.standard_normal((7, 11)))
    old = Factors(A=np.zeros((3, 11), np.float32), B=np.zeros((7, 3), np.float32), R=np.zeros((3, 3), np.float32))
    found = principal(change, old, scaling=2.0)
    assert found.R is not None
    left = change - 2.0 * found.B @ found.R @ found.A
    values = np.linalg.svd(change, compute_uv=False)
    np.testing.assert_allclose(np.linalg.norm(left), np.linalg.norm(values[3:]), rtol=1e-5)
    np.testing.assert_allclose(found.B.T @ found.B, np.eye(3), atol=1e-6)
    np.testing.assert_allclose(found.A @ found.A.T, np.eye(3), atol=1e-6)


def test_a_rank_above_the_sides_is_filled_up_with_zeros() -> None:
    old = Factors(A=np.zeros((5, 4), np.float32), B=np.zeros((3, 5), np.float32), R=np.zeros((5, 5), np.float32))
    change = np.ones((3, 4)) + np.eye(3, 4)
    found = principal(change, old, 1.0)
    np.testing.assert_allclose(found.pair.B @ found.pair.A, change, atol=1e-6)


def run(**options: object) -> list[ServerState]:
    model, members = model_of(backbone("bert"), "bert"), clients([9, 5, 12])
    plan = make_plan(model, members, "fed-sb", num_server_rounds=3, r=4, batch_size=4, learning_rate=1e-3, **options)
    return [state for state, _ in simulate(model, members, plan)]


def test_the_pooled_gradient_s_sign_is_the_start() -> None:
    """As LoRA-SB would start on the clients' examples in one place, all of which are drawn here."""
    state = run()[0]
    model, members = model_of(backbone("bert"), "bert"), clients([9, 5, 12])
    network, engine = backbone("bert"), model.network
    total = {n: torch.zeros(layer.d_out, layer.d_in) for n, layer in engine.layers.items()}
    for member in members:
        for ids, label in zip(member.train.input_ids, member.train.labels, strict=True):
            network.zero_grad()
            network.requires_grad_(True)
            hidden = network(torch.from_numpy(ids)[None]).last_hidden_state.mean(1)
            loss = torch.nn.functional.cross_entropy(engine.objective.logits(hidden), torch.tensor([label]))
            loss.backward()
            for n in total:
                total[n] += network.get_submodule(n).weight.grad
    for n, gradient in total.items():
        u, s, vt = np.linalg.svd(-1e-3 * np.sign(gradient.numpy()))
        expected = u[:, :4] * s[:4] @ vt[:4]
        got = delta_weight(state.adapter, n)
        assert np.abs(got - expected).max() < 0.02 * np.abs(expected).max(), n


@pytest.mark.parametrize("family", ["bert", "gpt2", "rembert"])
def test_other_number_types_and_families(family: str) -> None:
    """In bfloat16 too, where frozen weights are of another type than the gradient; and nearly what float32 gives."""
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        model, members = model_of(backbone(family), family, dtype=dtype), clients([9, 5, 12])
        plan = make_plan(model, members, "fed-sb", num_server_rounds=3, r=20, batch_size=4, learning_rate=1e-3)
        states = [state for state, _ in simulate(model, members, plan)]
        found.append(np.concatenate([delta_weight(states[0].adapter, n).ravel() for n in states[0].adapter.factors]))
        assert states[-1].adapter.tensors.finite()
    assert np.dot(*found) > 0.8 * np.linalg.norm(found[0]) * np.linalg.norm(found[1])


def test_what_travels_is_counted() -> None:
    """The gradient of every target weight up in round 1; B, A and R down in round 2; R alone both ways from then on."""
    model, members = model_of(backbone("bert"), "bert"), clients([9, 5, 12])
    plan = make_plan(model, members, "fed-sb", num_server_rounds=4, r=4, batch_size=4, learning_rate=1e-3)
    records = [record for _, record in simulate(model, members, plan)]
    modules = plan.federation.layout.modules
    dense, cores = sum(m.d_out * m.d_in for m in modules), 16 * len(modules)
    pairs = 4 * sum(m.d_out + m.d_in for m in modules)
    assert [r.uploaded_parameters for r in records] == [3 * dense, 3 * cores, 3 * cores, 3 * cores]
    assert [r.downloaded_parameters for r in records] == [0, 3 * (pairs + cores), 3 * cores, 3 * cores]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_peft_gets_a_pair_of_the_same_product(tmp_path: Path) -> None:
    state = run()[-1]
    model = tiny_model()
    save_result(tmp_path / "adapter", model, state)
    saved = read_adapter(tmp_path / "adapter").adapter
    for name in state.adapter.factors:
        np.testing.assert_allclose(delta_weight(saved, name), delta_weight(state.adapter, name), atol=1e-7)
    network = backbone("bert")
    before = {n: network.get_submodule(n).weight.detach().clone() for n in state.adapter.factors}
    merged = PeftModel.from_pretrained(network, str(tmp_path / "adapter")).merge_and_unload()
    for name, old in before.items():
        change = (merged.get_submodule(name).weight.detach() - old).numpy()
        np.testing.assert_allclose(change, delta_weight(state.adapter, name), atol=1e-6)


def test_a_trained_head_goes_on_beside_the_core() -> None:
    model, members = tiny_model(head="trained"), clients([9, 5, 12])
    plan = make_plan(model, members, "fed-sb", num_server_rounds=2, r=4, batch_size=4, learning_rate=1e-3)
    states = [plan.start(), *(state for state, _ in simulate(model, members, plan))]
    heads = [s.adapter.head["weight"] for s in states]
    assert np.array_equal(heads[0], heads[1]) and not np.array_equal(heads[1], heads[2])
    assert weight_name("x") == "x.weight"


@pytest.mark.parametrize("optimizer", ["momentum", "adam", "yogi"])
def test_server_optimizers_move_the_core_alone(optimizer: str) -> None:
    states = run(server_optimizer=optimizer)
    for name, f in states[0].adapter.factors.items():
        last = states[-1].adapter.factors[name]
        assert (
            np.array_equal(f.A, last.A)
            and np.array_equal(f.B, last.B)
            and not np.array_equal(f.get("R"), last.get("R"))
        )
