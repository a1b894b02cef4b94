"""The estimate against the paper's figures and against frames that were really encoded."""

from __future__ import annotations

import dataclasses
from itertools import combinations

import numpy as np
import pytest

from lora_a2.codec import UploadSchema, encode
from lora_a2.core.algebra import initial_adapter
from lora_a2.core.sampling import cohort_size
from lora_a2.core.types import Layout, ModuleShape, Upload
from lora_a2.errors import ConfigError
from lora_a2.federation.cost import Cost, estimate_cost
from lora_a2.methods import METHODS
from lora_a2.methods.base import Method, alternate

BLOCK = [(768, 768)] * 4 + [(3072, 768), (768, 3072)]
ROBERTA = Layout(tuple(ModuleShape(f"{i}.{j}", *shape) for i in range(12) for j, shape in enumerate(BLOCK)))
ROBERTA_PARAMETERS = 124_645_632
SMALL = Layout((ModuleShape("x", 3, 5), ModuleShape("y", 7, 2)), (("head", (2, 3)),))


def paper(method: str, rank: int, r: int = 16) -> Cost:
    return estimate_cost(
        ROBERTA,
        METHODS[method],
        r=r,
        rank_budgets=[rank] * 30,
        num_server_rounds=50,
        full_parameters=ROBERTA_PARAMETERS,
    )


def test_published_numbers_of_uploaded_parameters() -> None:
    assert paper("fl-lora", 8).uploaded_parameters == 1_990_656_000
    assert paper("fl-lora", 1).uploaded_parameters == 248_832_000
    assert paper("ffa-lora", 8).uploaded_parameters == 995_328_000
    assert round(paper("fl-lora", 8).full_finetuning_parameters / 1e9) == 187
    assert paper("fl-lora", 8).reduction_percent == pytest.approx(98.935, abs=1e-3)


@pytest.mark.parametrize(("rank", "published"), [(8, 1.31e9), (4, 0.888e9), (2, 0.528e9), (1, 0.270e9)])
def test_published_uploads_of_lora_a2_are_within_the_bounds(rank: int, published: float) -> None:
    cost = paper("lora-a2", rank)
    assert cost.uploaded_parameters == 30 * 50 * rank * 82_944
    assert cost.uploaded_parameters_min == 30 * 50 * rank * 72 * 768  # 60 of 72 modules are 768 wide
    assert cost.uploaded_parameters_min < published < cost.uploaded_parameters_max
    # 49 rounds after the first, in each of which one of two factors may have changed.
    assert cost.downloaded_parameters_min < cost.downloaded_parameters <= cost.downloaded_parameters_max
    assert cost.downloaded_parameters_max == 30 * 49 * 16 * 82_944


def test_a_method_without_selection_has_no_spread() -> None:
    cost = paper("fl-lora", 4)
    assert cost.uploaded_parameters_min == cost.uploaded_parameters == cost.uploaded_parameters_max
    assert cost.uploaded_bytes_min == cost.uploaded_bytes == cost.uploaded_bytes_max
    assert cost.uploaded_bytes == 4 * cost.uploaded_parameters + 30 * 50 * 64
    # The first round's downloads carry nothing but headers and bitmaps: the start follows from the seed.
    assert cost.downloaded_parameters == cost.uploaded_parameters * 49 // 50


def small(name: str, budgets: list[int], rounds: int, fraction: float = 1.0, dtype: str = "fp32") -> Cost:
    return estimate_cost(
        SMALL,
        METHODS[name],
        r=3,
        rank_budgets=budgets,
        num_server_rounds=rounds,
        full_parameters=1000,
        fraction_train=fraction,
        dtype=dtype,
    )


def uploads(method: Method, budget: int, server_round: int, dtype: str) -> list[int]:
    """Bytes of the upload under every mask that the method could choose."""
    rank = 3 if method.select else budget
    head = {"head": np.zeros((2, 3), np.float32)}
    adapter = initial_adapter(SMALL, rank, 16, np.random.default_rng(0), head, method.core)
    shared, schema = method.shared(server_round), UploadSchema(SMALL, dtype, factors=method.factors)
    if not method.select:
        return [len(encode(Upload(server_round, 1, shared, 1, 0.0, None, adapter), schema))]
    sizes = []
    for chosen in combinations(range(6), min(budget, 3) * 2):
        bits = np.isin(np.arange(6), chosen)
        upload = Upload(server_round, 1, shared, 1, 0.0, {"x": bits[:3], "y": bits[3:]}, adapter)
        sizes.append(len(encode(upload, schema)))
    return sizes


PLAIN = [m.name for m in METHODS.values() if not (m.sparse or m.moves_base or m.gradients)]
"""The others' estimates are compared with rounds in test_conformance.py, as theirs are too."""


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("budget", [1, 2, 3, 4])
@pytest.mark.parametrize("rounds", [1, 2, 5])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_bytes_are_those_of_encoded_frames(name: str, budget: int, rounds: int, dtype: str) -> None:
    cost = small(name, [budget] * 4, rounds, dtype=dtype)
    per_round = [uploads(METHODS[name], budget, t, dtype) for t in range(1, rounds + 1)]
    assert cost.uploaded_bytes_min == 4 * sum(min(sizes) for sizes in per_round)
    assert cost.uploaded_bytes_max == 4 * sum(max(sizes) for sizes in per_round)
    assert cost.uploaded_bytes == pytest.approx(4 * sum(float(np.mean(sizes)) for sizes in per_round), abs=0.5)


def test_odd_rounds_send_b_and_even_rounds_a() -> None:
    assert small("lora-a2", [3], 1).uploaded_parameters == 3 * (3 + 7) + 6
    assert small("lora-a2", [3], 2).uploaded_parameters == 3 * (3 + 7) + 3 * (5 + 2) + 2 * 6
    assert small("lora-a2", [3], 3).uploaded_parameters == 2 * 3 * (3 + 7) + 3 * (5 + 2) + 3 * 6
    assert small("ffa-lora", [3], 2).uploaded_parameters == 2 * (3 * (3 + 7) + 6)


def test_a_cohort_of_unequal_clients_is_expected_and_bounded() -> None:
    cost = small("lora-a2", [1, 2, 3, 3], 1, fraction=0.5)
    assert cost.clients_per_round == 2
    assert cost.uploaded_parameters == round(2 * 10 * (1 + 2 + 3 + 3) / 4) + 2 * 6
    assert cost.uploaded_parameters_min == (2 * 3) + (3 * 3 + 7) + 2 * 6
    assert cost.uploaded_parameters_max == 2 * 3 * 10 + 2 * 6


def test_without_selection_a_budget_is_a_rank() -> None:
    mixed = dataclasses.replace(METHODS["fl-lora"], mixed_ranks=True, schedule=alternate("B", "A"))
    cost = estimate_cost(SMALL, mixed, r=99, rank_budgets=[1, 4], num_server_rounds=2, full_parameters=1)
    assert cost.uploaded_parameters == (1 + 4) * 17 + 4 * 6
    assert cost.downloaded_parameters == (1 + 4) * 10 + 2 * 6  # B, in round 2


def test_cohort_size() -> None:
    assert [cohort_size(30, f) for f in (1.0, 0.5, 0.1, 0.01)] == [30, 15, 3, 1]


@pytest.mark.parametrize(
    ("budgets", "rounds", "fraction", "said"),
    [
        ([], 1, 1.0, "rank budgets"),
        ([0], 1, 1.0, "rank budgets"),
        ([1], 0, 1.0, "num-server-rounds 0"),
        ([1], 1, 0.0, "fraction-train"),
        ([1], 1, 1.5, "fraction-train"),
        ([1, 2], 1, 1.0, "fl-lora needs the same"),
    ],
)
def test_wrong_numbers_are_config_errors(budgets: list[int], rounds: int, fraction: float, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        small("fl-lora", budgets, rounds, fraction)
