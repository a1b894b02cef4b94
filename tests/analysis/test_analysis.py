"""Statistics of a run's record against slow, obvious twins."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_a2.analysis.convergence import client_scores, curve, discordance, pareto_front, rounds_to
from lora_a2.analysis.ranks import place, selected_ranks
from lora_a2.analysis.record import ClientInfo, RoundAnalysis, RunRecord, load_run, pack_mask, unpack_mask
from lora_a2.analysis.similarity import (
    gradient_similarity,
    jaccard,
    label_overlap,
    mask_similarity,
    run_label_overlap,
    sharing_test,
    update_similarity,
)
from lora_a2.analysis.summary import analyze
from lora_a2.core.randomness import generator
from lora_a2.core.types import Layout, ModuleShape
from lora_a2.errors import RunError
from lora_a2.federation.records import ClientRecord, RoundRecord
from lora_a2.system.files import seal

MODULES = (ModuleShape("encoder.layer.0.query", 4, 3), ModuleShape("encoder.layer.1.query", 4, 3))


def line(server_round: int, masks: dict[int, list[int]], cosines: dict[tuple[int, int], float | None]) -> RoundAnalysis:
    """A round of clients with these selected slices (0..5 over two modules of rank 3)."""
    ids = tuple(sorted(masks))

    def packed(chosen: list[int]) -> str:
        bits = np.isin(np.arange(6), chosen)
        return pack_mask({m.name: part for m, part in zip(MODULES, np.split(bits, 2), strict=True)}, Layout(MODULES))

    pairs = tuple(cosines[pair] for pair in itertools.combinations(ids, 2))
    return RoundAnalysis(server_round, ids, 3, tuple(packed(masks[i]) for i in ids), (1.0,) * len(ids), pairs, 0.5, 2.0)


def record(
    analyses: tuple[RoundAnalysis, ...], counts: list[list[int]], rounds: Sequence[RoundRecord] = ()
) -> RunRecord:
    clients = tuple(ClientInfo(k, f"client-{k}", np.array(row), np.array(row)) for k, row in enumerate(counts))
    names = tuple(f"class {c}" for c in range(len(counts[0]) if counts else 0))
    return RunRecord(Path("run"), {"method": "m"}, {}, tuple(rounds), names, MODULES, clients, analyses)


@given(bits=st.lists(st.booleans(), min_size=1, max_size=70))
def test_masks_survive_their_packing(bits: list[bool]) -> None:
    layout = Layout((ModuleShape("m", 2, 3),))
    assert unpack_mask(pack_mask({"m": np.array(bits)}, layout), len(bits)).tolist() == bits


@given(data=st.data(), clients=st.integers(1, 5), size=st.integers(1, 8))
def test_jaccard_is_that_of_sets(data: st.DataObject, clients: int, size: int) -> None:
    chosen = [data.draw(st.sets(st.integers(0, size - 1))) for _ in range(clients)]
    found = jaccard(np.array([np.isin(np.arange(size), list(s)) for s in chosen]).reshape(clients, size))
    for (i, a), (j, b) in itertools.product(enumerate(chosen), repeat=2):
        assert found[i, j] == pytest.approx(len(a & b) / len(a | b) if a | b else 1.0)


@given(counts=st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=1, max_size=4))
def test_label_overlap_is_that_of_shares(counts: list[list[int]]) -> None:
    found = label_overlap(np.array(counts))
    for i, j in itertools.product(range(len(counts)), repeat=2):
        shares = [[n / sum(row) if sum(row) else 0.0 for n in row] for row in (counts[i], counts[j])]
        assert found[i, j] == pytest.approx(sum(min(p, q) for p, q in zip(*shares, strict=True)))


def naive_p_value(similarity: np.ndarray, overlap: np.ndarray) -> tuple[float, float]:
    """Every permutation of the clients, one by one."""
    pairs = list(itertools.combinations(range(len(similarity)), 2))

    def correlation(order: tuple[int, ...]) -> float:
        x = [similarity[i, j] for i, j in pairs]
        y = [overlap[order[i], order[j]] for i, j in pairs]
        return float(np.corrcoef(x, y)[0, 1])

    observed = correlation(tuple(range(len(similarity))))
    every = [correlation(order) for order in itertools.permutations(range(len(similarity)))]
    return observed, float(np.mean([c >= observed - 1e-9 for c in every]))


def symmetric(values: np.ndarray) -> np.ndarray:
    return np.asarray((values + values.T) / 2)


@given(size=st.integers(3, 5), seed=st.integers(0, 9_999))
@settings(max_examples=40, deadline=None)
def test_the_sharing_test_is_the_mantel_test(size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    similarity, overlap = symmetric(rng.random((size, size))), symmetric(rng.random((size, size)))
    found = sharing_test(pd.DataFrame(similarity), pd.DataFrame(overlap))
    assert found is not None
    observed, p_value = naive_p_value(similarity, overlap)
    assert found.correlation == pytest.approx(observed)
    assert found.p_value == pytest.approx(p_value)


def test_pairs_that_share_classes_are_found_and_chance_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    counts = np.kron(np.eye(5, dtype=np.int64), np.ones((2, 1), np.int64))
    overlap = pd.DataFrame(label_overlap(counts))
    noise = symmetric(rng.random((10, 10)))
    alike = sharing_test(pd.DataFrame(overlap.to_numpy() + 0.2 * noise), overlap)
    monkeypatch.setattr("lora_a2.analysis.similarity.RESAMPLES", 199)  # as it is with fewer, only sooner
    chance = [sharing_test(pd.DataFrame(symmetric(rng.random((10, 10)))), overlap) for _ in range(60)]
    assert alike is not None and alike.p_value < 0.002
    assert alike.sharing is not None and alike.apart is not None and alike.sharing > alike.apart + 0.8
    p_values = np.array([test.p_value for test in chance if test is not None])
    assert len(p_values) == 60
    assert 0.35 < p_values.mean() < 0.65, "uniform if there is nothing to find"
    assert p_values.min() >= 1 / 200, "a random permutation test never says 0"


@pytest.mark.parametrize("hole", [np.full((3, 3), 0.5), np.array([[1, np.nan, 0], [np.nan, 1, 0], [0, 0, 1]])])
def test_there_is_no_test_without_differences_or_with_holes(hole: np.ndarray) -> None:
    overlap = pd.DataFrame(np.array([[1, 1, 0], [1, 1, 0.2], [0, 0.2, 1]]))
    assert sharing_test(pd.DataFrame(hole), overlap) is None
    assert sharing_test(overlap, pd.DataFrame(np.ones((3, 3)))) is None
    assert sharing_test(overlap.iloc[:2, :2], overlap) is None


def test_matrices_are_means_over_the_rounds_a_pair_was_in() -> None:
    run = record(
        (
            line(1, {0: [0, 1], 2: [1, 2]}, {(0, 2): 0.5}),
            line(2, {0: [0], 1: [0], 2: [3]}, {(0, 1): 1.0, (0, 2): -0.5, (1, 2): None}),
        ),
        [[1, 0], [1, 0], [0, 1]],
    )
    masks, updates = mask_similarity(run), update_similarity(run)
    assert masks.loc[0, 1] == 1 and masks.loc[0, 2] == pytest.approx((1 / 3 + 0) / 2) and masks.loc[1, 2] == 0
    assert updates.loc[0, 2] == 0 and updates.loc[1, 0] == 1 and np.isnan(updates.loc[1, 2])
    assert mask_similarity(run, rounds=[1]).shape == (2, 2)
    assert gradient_similarity(run).to_dict() == {1: 0.5, 2: 0.25}
    assert run_label_overlap(run).loc[0].tolist() == [1, 1, 0]
    assert discordance(run)["relative"].tolist() == [0.25, 0.25]


def test_without_selection_there_is_no_mask_similarity() -> None:
    run = record((replace(line(1, {0: [1]}, {}), rank=None, masks=()),), [[1, 1]])
    assert mask_similarity(run).empty
    assert run.analyses[0].selected(MODULES) == {}


@pytest.mark.parametrize(
    ("module", "where"),
    [
        ("encoder.layer.11.attention.self.query", (11, "attention.self.query")),
        ("layers.0.self_attn.q_proj", (0, "self_attn.q_proj")),
        ("h.3.mlp.c_fc", (3, "mlp.c_fc")),
        ("pooler.dense", (-1, "pooler.dense")),
    ],
)
def test_place(module: str, where: tuple[int, str]) -> None:
    assert place(module) == where


def ledger(*selected: dict[str, int], accuracy: tuple[float | None, ...] = (None, 0.5)) -> list[RoundRecord]:
    """A round for each accuracy; in each the clients 0, 1, … uploaded `selected`."""
    return [
        RoundRecord(
            server_round=n,
            trainable=["B"],
            clients=[
                ClientRecord(
                    *(k, 5, 1),
                    uploaded_bytes=10,
                    uploaded_parameters=2,
                    downloaded_bytes=30,
                    downloaded_parameters=6,
                    train_loss=1.0 / n,
                    selected=counts,
                )
                for k, counts in enumerate(selected)
            ],
            uploaded_bytes=10,
            uploaded_parameters=2,
            downloaded_bytes=30,
            downloaded_parameters=6,
            train_loss=1.0 / n,
            metrics={} if value is None else {"accuracy": value, "per_client": {"a": value, "b": 0.1}},
        )
        for n, value in enumerate(accuracy, start=1)
    ]


def test_selected_ranks_are_means_over_clients_and_rounds() -> None:
    first, second = (m.name for m in MODULES)
    run = record((), [], ledger({first: 2}, {first: 1, second: 4}))
    assert selected_ranks(run).to_dict() == {"query": {0: 1.5, 1: 2.0}}
    assert selected_ranks(run, client=0)["query"].tolist() == [2, 0]
    with pytest.raises(RunError, match="no upload of client 7 in round 2"):
        selected_ranks(run, client=7, server_round=2)


def test_curve_and_rounds_to_a_goal() -> None:
    run = record((), [], ledger({}, accuracy=(0.2, None, 0.46, 0.5)))
    table = curve(run)
    assert table["uploaded_bytes"].tolist() == [10, 20, 30, 40]
    assert table["accuracy"].isna().tolist() == [False, True, False, False]
    assert [rounds_to(table["accuracy"], goal, run.task) for goal in (0.9, 0.95, 0.1)] == [3, 4, 1]
    assert rounds_to(curve(record((), [], ledger({}, accuracy=(None,))))["accuracy"], 0.9, run.task) is None
    assert list(client_scores(run).items()) == [("b", 0.1), ("a", 0.5)]


def written(*perplexities: float | None) -> list[RoundRecord]:
    """A round for each perplexity, with two clients' own."""
    return [
        replace(
            line,
            metrics={}
            if value is None
            else {
                "loss": float(np.log(value)),
                "perplexity": value,
                "token_accuracy": 1 / value,
                "client_mean": value + 1,
                "client_worst_tenth": value + 2,
                "client_std": 0.5,
                "per_client": {"a": value, "b": value + 2},
            },
        )
        for line, value in zip(ledger({}, accuracy=(None,) * len(perplexities)), perplexities, strict=True)
    ]


def test_a_model_that_writes_is_the_better_the_lower_its_perplexity() -> None:
    run = record((), [], written(40.0, None, 11.0, 10.0, 12.0))
    table = curve(run)
    assert list(table.columns[:6]) == [
        *("train_loss", "perplexity", "loss", "token_accuracy"),
        *("client_mean", "client_worst_tenth"),
    ]
    assert table["perplexity"].dropna().to_dict() == {1: 40, 3: 11, 4: 10, 5: 12}
    assert table["token_accuracy"].dropna().to_list() == [1 / 40, 1 / 11, 1 / 10, 1 / 12]
    # at least 90 % as good as 10 is at most 11.1, 95 % at most 10.5
    assert [rounds_to(table["perplexity"], goal, run.task) for goal in (0.9, 0.95, 0.1)] == [3, 4, 1]
    assert list(client_scores(run).items()) == [("b", 14), ("a", 12)]
    assert client_scores(run).name == "perplexity"


def test_the_summary_of_a_model_that_writes_names_perplexity() -> None:
    first, second = (m.name for m in MODULES)
    lines = (line(1, {0: [0], 1: [0, 1]}, {(0, 1): 0.25}),)
    found = analyze(
        record(lines, [], [replace(r, clients=ledger({first: 1, second: 1})[0].clients) for r in written(9.0)])
    )
    assert "accuracy" not in found
    assert (found["task"], found["perplexity"]) == ("causal-lm", 9)
    assert found["rounds_to"] == {"0.9": 1, "0.95": 1, "0.99": 1}
    assert found["clients"] == {"worst_tenth": 11, "mean": 10, "num_evaluated": 2}
    assert found["updates"] == {"mean": 0.25, "test": None}, "no labels that clients could share"
    assert found["masks"] == {"mean": 0.5, "test": None}
    assert json.loads(json.dumps(found)) == found


@given(points=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12))
def test_pareto_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    found = pareto_front(*np.array(points, np.float64).T)
    for (cost, gain), on_front in zip(points, found, strict=True):
        beaten = any(c <= cost and g >= gain and (c, g) != (cost, gain) for c, g in points)
        assert on_front != beaten


def test_what_is_no_run_and_what_is_damaged(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run directory"):
        load_run(tmp_path)
    (tmp_path / "config.toml").write_text('method = "m"\n')
    with pytest.raises(RunError, match="SHA256SUMS is missing"):
        load_run(tmp_path)
    seal(tmp_path)
    with pytest.raises(RunError, match="is damaged"):
        load_run(tmp_path)
    (tmp_path / "environment.json").write_text("{}")
    seal(tmp_path)
    with pytest.raises(RunError, match="no finished round"):
        analyze(load_run(tmp_path))
    (tmp_path / "clients.json").write_text(json.dumps({"clients": []}))
    seal(tmp_path)
    with pytest.raises(RunError, match="is damaged"):
        load_run(tmp_path)


def test_the_summary_says_whether_clients_that_share_classes_are_alike() -> None:
    rng = generator(0, "test-summary")
    counts = np.kron(np.eye(4, dtype=np.int64), np.ones((2, 1), np.int64)).tolist()
    cosines: dict[tuple[int, int], float | None] = {
        (i, j): (0.9 if i // 2 == j // 2 else 0.0) + 0.05 * float(rng.random())
        for i, j in itertools.combinations(range(8), 2)
    }
    masks = {k: [k // 2, 5] for k in range(8)}
    found = analyze(record((line(1, masks, cosines),), counts, ledger({"encoder.layer.0.query": 1}, accuracy=(0.5,))))
    assert found["updates"]["test"]["p_value"] < 0.01
    assert found["masks"]["test"]["sharing"] == 1
    assert found["masks"]["test"]["apart"] == pytest.approx(1 / 3)
    assert found["selected_ranks"] == {"0": {"query": 1.0}, "1": {"query": 0.0}}
    assert json.loads(json.dumps(found)) == found
