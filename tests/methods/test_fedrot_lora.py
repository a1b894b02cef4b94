"""FedRot-LoRA: what alignment keeps and what it makes better."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_a2.core.algebra import nearest_rotation, turned_back
from lora_a2.core.types import Adapter, Factors, FloatArray
from lora_a2.methods.fedrot_lora import align
from lora_a2.simulation import make_plan, simulate
from tiny import backbone, clients, model_of

SHAPES = st.tuples(st.integers(4, 9), st.integers(4, 9), st.integers(1, 4), st.integers(0, 10**6))


def pair(d_out: int, d_in: int, rank: int, rng: np.random.Generator) -> Adapter:
    A, B = rng.standard_normal((rank, d_in)), rng.standard_normal((d_out, rank))
    return Adapter({"m": Factors(A.astype(np.float32), B.astype(np.float32))}, 8.0)


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.integers(1, 4))
def test_the_product_stays_and_nothing_is_mirrored(shape: tuple[int, int, int, int], server_round: int) -> None:
    d_out, d_in, rank, seed = shape
    rng = np.random.default_rng(seed)
    start, trained = pair(d_out, d_in, rank, rng), pair(d_out, d_in, rank, rng)
    aligned = align(start, trained, server_round)
    old, new = trained.factors["m"], aligned.adapter.factors["m"]
    np.testing.assert_allclose(new.B @ new.A, old.B @ old.A, atol=2e-5 * (1 + np.abs(old.B @ old.A).max()))
    turn = np.linalg.lstsq(old.B.astype(float), new.B.astype(float), rcond=None)[0]
    assert np.linalg.det(turn) == pytest.approx(1, abs=1e-3)
    assert aligned.mask is None and (server_round > 1 or aligned.adapter is trained)


@settings(max_examples=60, deadline=None)
@given(SHAPES)
def test_a_full_rotation_comes_nearest_to_the_reference(shape: tuple[int, int, int, int]) -> None:
    """No other rotation is nearer: compared with random ones."""
    d_out, d_in, rank, seed = shape
    rng = np.random.default_rng(seed)
    own, reference = (pair(d_out, d_in, rank, rng).factors["m"].A.astype(float) for _ in range(2))
    best = np.linalg.norm(nearest_rotation(own @ reference.T).T @ own - reference)
    for _ in range(20):
        other = np.linalg.qr(rng.standard_normal((rank, rank)))[0]
        other[:, 0] *= np.sign(np.linalg.det(other))
        assert best <= np.linalg.norm(other.T @ own - reference) + 1e-9


def test_clients_that_differ_by_a_rotation_average_better() -> None:
    """The mean of aligned factors loses less of the clients' common product than that of factors as they are."""
    rng = np.random.default_rng(0)
    start = pair(7, 5, 3, rng)
    f = start.factors["m"]
    clients = []
    for _ in range(4):
        turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
        turn[:, 0] *= np.sign(np.linalg.det(turn))
        clients.append(Adapter({"m": Factors((turn.T @ f.A).astype(np.float32), (f.B @ turn).astype(np.float32))}, 8.0))

    def lost(adapters: list[Adapter]) -> float:
        A, B = (np.mean([a.factors["m"].get(x) for a in adapters], axis=0) for x in ("A", "B"))
        return float(np.linalg.norm(B @ A - f.B @ f.A))

    assert lost([align(start, c, 2).adapter for c in clients]) < 0.5 * lost(clients)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "momentum"])
def test_turning_is_not_taken_for_training(optimizer: str) -> None:
    """B is small in the first rounds and its rotations large: A then moves farther than any step of AdamW, without harm."""
    model, members = model_of(backbone("bert"), "bert"), clients([1, 1, 2, 3, 9])
    plan = make_plan(
        *(model, members, "fedrot-lora"), num_server_rounds=4, r=8, learning_rate=1e-3, local_epochs=1,
        server_optimizer=optimizer, max_update_ratio=10, eval_every=9,
    )  # fmt: skip
    records = [record for _, record in simulate(model, members, plan)]
    assert not any(record.refused for record in records)
    assert all(0 < c.update_norm < 10 for record in records for c in record.clients)


def test_a_turn_is_undone_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    start = Adapter({"x": Factors(A=normal(rng, 4, 9), B=normal(rng, 7, 4))}, 8.0)
    step = Factors(A=1e-3 * normal(rng, 4, 9), B=1e-3 * normal(rng, 7, 4))
    f = start.factors["x"]
    turn = nearest_rotation(rng.standard_normal((4, 4)))
    sent = Factors(A=(turn.T @ (f.A + step.A)).astype(np.float32), B=((f.B + step.B) @ turn).astype(np.float32))
    back = turned_back(Adapter({"x": sent}, 8.0), start).factors["x"]
    np.testing.assert_allclose(back.B @ back.A, sent.B @ sent.A, atol=1e-5)
    assert np.linalg.norm(back.A - f.A) ** 2 + np.linalg.norm(back.B - f.B) ** 2 <= 1.001 * (
        np.linalg.norm(step.A) ** 2 + np.linalg.norm(step.B) ** 2
    )


def normal(rng: np.random.Generator, *shape: int) -> FloatArray:
    return rng.standard_normal(shape, np.float32)
