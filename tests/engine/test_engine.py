"""The cohort engine against the slow reference trainer: packed against padded, merged against not, K = 1 and K > 1."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from lora_a2.core.randomness import generator
from lora_a2.core.types import Adapter, Factor, Mask
from lora_a2.engine.kernels import attention
from lora_a2.engine.local import train_cohort
from lora_a2.engine.packing import Positions, pack
from lora_a2.engine.work import ClientTask, TrainingSettings, epoch_orders
from lora_a2.model.pretrained import random_head
from reference import ReferenceClassifier, train_reference
from tiny import CONFIGS, POOLING, backbone, classifier, examples, random_adapter

SETTINGS = TrainingSettings(batch_size=4, learning_rate=2e-3, learning_rate_ratio=5.0, weight_decay=0.1)
WAYS: list[frozenset[Factor]] = [frozenset({"A"}), frozenset({"B"}), frozenset({"A", "B"})]


def _relative(got: Adapter, expected: Adapter, start: Adapter) -> float:
    """Largest error of any factor, relative to how far that factor moved."""
    worst = 0.0
    for name, f in expected.factors.items():
        for factor in ("A", "B"):
            moved = np.abs(f.get(factor) - start.factors[name].get(factor)).max()
            error = np.abs(got.factors[name].get(factor) - f.get(factor)).max()
            if moved == 0:
                assert error == 0, f"{name} {factor} moved by {error} and should not have"
            else:
                worst = max(worst, float(error / np.abs(f.get(factor)).max()))
    for name, value in expected.head.items():
        worst = max(worst, float(np.abs(got.head[name] - value).max() / np.abs(value).max()))
    return worst


def _mask(adapter: Adapter, seed: int, share: float = 0.3) -> Mask:
    rng = generator(seed, "test-mask")
    return {name: rng.random(adapter.rank) < share for name in adapter.factors}


def _compare(
    family: str,
    tasks: list[ClientTask],
    trainable: frozenset[Factor],
    *,
    tolerance: float = 1e-4,
    settings: TrainingSettings = SETTINGS,
) -> None:
    model = backbone(family)
    reference = ReferenceClassifier(model, [], POOLING[family], random_head(3, 16, 4.0, seed=0))
    engine, _ = classifier(model, family)
    results = train_cohort(engine, tasks, trainable, settings)
    for task, result in zip(tasks, results, strict=True):
        expected = train_reference(
            reference,
            task.start,
            task.examples.input_ids,
            task.examples.labels,
            task.orders,
            trainable,
            task.mask,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            ratio=settings.learning_rate_ratio,
            weight_decay=settings.weight_decay,
            clipping_norm=settings.clipping_norm,
            max_grad_norm=settings.max_grad_norm,
        )
        assert _relative(result.adapter, expected, task.start) < tolerance


def _task(start: Adapter, count: int, seed: int, mask: Mask | None, epochs: int = 2) -> ClientTask:
    return ClientTask(start, examples(count, seed=seed), mask, epoch_orders(count, epochs, generator(seed, "orders")))


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("trainable", WAYS, ids=lambda w: "".join(sorted(w)))
@pytest.mark.parametrize("masked", [False, True])
def test_one_client_equals_the_reference(family: str, trainable: frozenset[Factor], masked: bool) -> None:
    _, layout = classifier(backbone(family), family)
    start = random_adapter(layout, rank=4)
    _compare(family, [_task(start, 11, 0, _mask(start, 0) if masked else None)], trainable)


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("trainable", WAYS, ids=lambda w: "".join(sorted(w)))
@pytest.mark.parametrize("masked", [False, True])
def test_cohort_of_unequal_clients_equals_the_reference(
    family: str, trainable: frozenset[Factor], masked: bool
) -> None:
    """Unequal data, so that clients drop out; different masks; one start, so that it is merged where one factor trains."""
    _, layout = classifier(backbone(family), family)
    start = random_adapter(layout, rank=3)
    counts = [5, 14, 2]
    tasks = [_task(start, n, k, _mask(start, k) if masked else None) for k, n in enumerate(counts)]
    _compare(family, tasks, trainable)


@pytest.mark.parametrize("trainable", WAYS, ids=lambda w: "".join(sorted(w)))
def test_cohort_of_mixed_ranks_equals_the_reference(trainable: frozenset[Factor]) -> None:
    _, layout = classifier(backbone("bert"), "bert")
    tasks = [_task(random_adapter(layout, rank, seed=k), 6 + k, k, None) for k, rank in enumerate([1, 4, 2])]
    _compare("bert", tasks, trainable)


@pytest.mark.parametrize("cohort", [1, 3])
def test_trained_head_equals_the_reference(cohort: int) -> None:
    _, layout = classifier(backbone("bert"), "bert")
    start = dataclasses.replace(random_adapter(layout, 2), head=random_head(3, 16, 4.0, seed=0))
    _compare("bert", [_task(start, 5 + 3 * k, k, None) for k in range(cohort)], frozenset({"B"}))


@pytest.mark.parametrize("trainable", WAYS, ids=lambda w: "".join(sorted(w)))
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("norm", [{"clipping_norm": 2.0}, {"max_grad_norm": 0.3}], ids=["L1", "L2"])
def test_clipped_gradients_equal_the_reference(
    trainable: frozenset[Factor], masked: bool, norm: dict[str, float]
) -> None:
    """Each client's gradient is clipped by itself, over what it trains, the head included."""
    _, layout = classifier(backbone("bert"), "bert")
    start = dataclasses.replace(random_adapter(layout, rank=3), head=random_head(3, 16, 4.0, seed=0))
    tasks = [_task(start, n, k, _mask(start, k) if masked else None) for k, n in enumerate([9, 5])]
    free = train_cohort(classifier(backbone("bert"), "bert")[0], tasks, trainable, SETTINGS)
    clipped = dataclasses.replace(SETTINGS, **norm)  # type: ignore[arg-type]
    _compare("bert", tasks, trainable, settings=clipped)
    moved = train_cohort(classifier(backbone("bert"), "bert")[0], tasks, trainable, clipped)
    assert all(_relative(a.adapter, b.adapter, start) > 1e-3 for a, b in zip(free, moved, strict=True))


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("cohort", [1, 2])
def test_activations_below_the_lowest_module_are_reused(family: str, cohort: int) -> None:
    """Masks that leave the first block alone: the reused activations lead to the reference's adapter."""
    engine, layout = classifier(backbone(family), family)
    start = random_adapter(layout, rank=4)
    tasks = []
    for k in range(cohort):
        mask = {name: keep & (".1." in name) for name, keep in _mask(start, k).items()}
        tasks.append(_task(start, 7 + 3 * k, k, mask))
    engine.load(start)
    modules = [name for name in start.factors if any(t.mask is not None and t.mask[name].any() for t in tasks)]
    prefix = engine.prefix(modules, [t.examples.input_ids for t in tasks])
    assert prefix is not None
    assert prefix.block == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lora_a2.engine.network.PREFIX_LIMIT", 10)
        assert engine.prefix(modules, [t.examples.input_ids for t in tasks]) is None
    assert engine.prefix(list(start.factors), [t.examples.input_ids for t in tasks]) is None
    _compare(family, tasks, frozenset({"B"}))


def test_unselected_slices_do_not_move_at_all() -> None:
    model, layout = classifier(backbone("bert"), "bert", dtype=torch.bfloat16)
    start = random_adapter(layout, rank=4)
    mask = _mask(start, 1)
    (result,) = train_cohort(model, [_task(start, 9, 0, mask)], frozenset({"B"}), SETTINGS)
    moved = 0
    for name, f in result.adapter.factors.items():
        same = f.B == start.factors[name].B
        assert same[:, ~mask[name]].all()
        assert (f.A == start.factors[name].A).all()
        moved += int((~same[:, mask[name]]).sum())
    assert moved > 0


class _Reads(TorchDispatchMode):
    """Notes the operations whose result the host has to wait for: values read, and shapes that depend on values."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "item")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        mask = name.startswith("index") and any(
            t is not None and t.dtype == torch.bool for t in (args[1] if isinstance(args[1], list) else [])
        )
        if mask or any(name.startswith(w) for w in self.WAITING):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("trainable", WAYS, ids=lambda w: "".join(sorted(w)))
def test_steps_never_wait_for_a_value(
    family: str, trainable: frozenset[Factor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU the host must run ahead: more steps read no more values. Without the kernels, which a GPU does not have."""
    monkeypatch.setattr(attention, "kernel", None)
    engine, layout = classifier(backbone(family), family)
    start = random_adapter(layout, rank=4)
    masks = [None if len(trainable) == 2 else _mask(start, k) for k in range(2)]

    def reads(epochs: int) -> list[str]:
        tasks = [_task(start, count, k, masks[k], epochs) for k, count in enumerate((9, 5))]
        with _Reads() as mode:
            train_cohort(engine, tasks, trainable, dataclasses.replace(SETTINGS, clipping_norm=1.0, max_grad_norm=0.1))
        return mode.found

    assert reads(1) == reads(4)


def test_same_task_gives_the_same_bytes() -> None:
    model, layout = classifier(backbone("bert"), "bert")
    start = random_adapter(layout, rank=4)
    once, again = (train_cohort(model, [_task(start, 9, 0, None)], frozenset({"A"}), SETTINGS)[0] for _ in range(2))
    for name, f in once.adapter.factors.items():
        assert f.A.tobytes() == again.adapter.factors[name].A.tobytes()
    assert once.train_loss == again.train_loss


@pytest.mark.parametrize("family", CONFIGS)
def test_predictions_equal_the_padded_model(family: str) -> None:
    model = backbone(family)
    reference = ReferenceClassifier(model, [], POOLING[family], random_head(3, 16, 4.0, seed=0))
    engine, layout = classifier(model, family)
    adapter = random_adapter(layout, rank=4, scale=1.0)
    data = examples(23)
    weights = {n: torch.tensor(adapter.scaling * f.B @ f.A) for n, f in adapter.factors.items()}
    with torch.no_grad():
        expected = reference(data.input_ids, weights, None).numpy()
    got = engine.predict(adapter, data.input_ids, batch_size=5)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    plain = engine.predict(None, data.input_ids)
    assert np.abs(plain - got).max() > 1e-2


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=7), min_size=1, max_size=3),
    st.sampled_from(["mean", "cls", "last"]),
)
def test_packing_places_every_token_once(lengths: list[list[int]], pooling: str) -> None:
    ticket = iter(range(1, 10_000))
    cohort = [[np.array([next(ticket) for _ in range(n)]) for n in client] for client in lengths]
    batch = pack(cohort, pooling=pooling, positions=Positions(2))  # type: ignore[arg-type]
    ids, positions = batch.input_ids[0].numpy(), batch.position_ids[0].numpy()
    flat = [s for client in cohort for s in client]
    seen, sentence = [], 0
    offset = 0
    for group, weights in zip(batch.groups, batch.pool, strict=True):
        for row, mask, weight in zip(group.rows, group.mask, weights, strict=True):
            rows = row[mask].numpy()
            assert ids[rows].tolist() == flat[int(batch.sentences[sentence])].tolist()
            assert positions[rows].tolist() == list(range(2, 2 + len(rows)))
            assert weight.sum().item() == pytest.approx(1)
            assert not weight[0][~mask].any()
            places = offset + np.arange(len(rows))
            assert batch.places[torch.from_numpy(rows)].tolist() == places.tolist()
            seen += rows.tolist()
            sentence += 1
            offset += len(mask)
    assert len(seen) == len(set(seen)) == sum(len(s) for s in flat)
    assert sorted(batch.sentences.tolist()) == list(range(len(flat)))


def test_clients_of_a_cohort_do_not_feel_each_other() -> None:
    """Alone or beside others, a client ends with the same adapter."""
    _, layout = classifier(backbone("bert"), "bert")
    start = random_adapter(layout, rank=3)
    tasks = [_task(start, n, k, _mask(start, k)) for k, n in enumerate([5, 9, 2, 9])]
    model, _ = classifier(backbone("bert"), "bert")
    together = train_cohort(model, tasks, frozenset({"B"}), SETTINGS)
    for task, result in zip(tasks, together, strict=True):
        (alone,) = train_cohort(model, [copy.copy(task)], frozenset({"B"}), SETTINGS)
        assert _relative(result.adapter, alone.adapter, start) < 1e-4
        assert result.train_loss == pytest.approx(alone.train_loss, rel=1e-5)
