"""The configuration: defaults, files and flags, errors in one line, rank budgets."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_a2.config.run import RunConfig, dump_config, kebab, load_config, make_config
from lora_a2.core.budgets import DISTRIBUTIONS, rank_budgets
from lora_a2.errors import ConfigError
from lora_a2.methods import METHODS
from lora_a2.settings.options import marks_of


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_defaults_are_resolved() -> None:
    config = RunConfig()
    assert (config.data, config.model, config.method) == ("helpdesk", "all-MiniLM-L6-v2", "lora-a2")
    assert (config.partitioner, config.num_clients, config.rank_budget) == ("dirichlet", 10, 2)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("r", [1, 8])
def test_default_rank_budget_is_small_only_for_methods_that_select(method: str, r: int) -> None:
    assert RunConfig(method=method, r=r).rank_budget == (min(2, r) if METHODS[method].select else r)


def test_a_client_column_makes_the_partition_natural_with_all_clients() -> None:
    config = RunConfig(client_column="user")
    assert (config.partitioner, config.num_clients) == ("natural", None)
    assert RunConfig(client_column="user", num_clients=4).num_clients == 4


def test_flags_win_over_the_file_and_none_is_not_given() -> None:
    config = make_config({"num-clients": 4, "seed": 3, "r": 8}, {"seed": "7", "r": None})
    assert (config.num_clients, config.seed, config.r) == (4, 7, 8)


def test_both_spellings_of_a_key_are_the_same_key() -> None:
    assert make_config({"num_clients": 4}, {"num-clients": "5"}).num_clients == 5


@pytest.mark.parametrize(
    ("text", "value"),
    [("4", 4), ("1,2,4", (1, 2, 4)), ("[1, 2, 4]", (1, 2, 4)), ("[3]", (3,)), ("normal", "normal")],
)
def test_rank_budget_text(text: str, value: Any) -> None:
    clients = len(value) if isinstance(value, tuple) else 10
    assert make_config({}, {"rank_budget": text, "num_clients": str(clients)}).rank_budget == value


def test_names_and_synonyms() -> None:
    config = make_config({"dtype": "bf16"}, {"target_modules": "query, value"})
    assert (config.dtype, config.target_modules) == ("bfloat16", ("query", "value"))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"rank-budget": 32}, "rank-budget: 32 is above r = 16; give at most 16, or raise r to 32."),
        ({"rank-budget": 0}, "rank-budget: 0 is below 1"),
        ({"rank-budget": "few"}, "rank-budget: 'few' is neither a number"),
        ({"rank-budget": [1, True]}, "is not made of whole numbers"),
        ({"rank-budget": [], "num-clients": 1}, "rank-budget: the list is empty"),
        ({"rank-budget": [1, 2]}, "rank-budget: the list has 2 numbers for 10 clients"),
        ({"rank-budget": "uniform", "r": 8}, "16 (the largest rank of 'uniform') is above r = 8"),
        ({"rank-budget": "uniform", "method": "fl-lora"}, "rank-budget: fl-lora needs the same for every client"),
        ({"method": "lora-b2"}, "method: Unknown method 'lora-b2'. Did you mean 'lora-a2'?"),
        ({"alpha": 0}, "alpha: 0 should be greater than 0."),
        ({"alpha": float("nan")}, "alpha: nan should be a finite number."),
        ({"r": True}, "r: true is not a number."),
        ({"num-clients": "ten"}, "num-clients: 'ten' should be a valid integer"),
        (
            {"partitioner": "dirichle"},
            "'dirichle' is not one of iid, dirichlet, quantity, pathological, label-shards, natural.",
        ),
        ({"partitioner": "natural"}, "client-column: the natural partitioner needs it"),
        ({"target-modules": "query,,value"}, "target-modules: an empty name"),
        ({"test-data": "t.csv", "test-fraction": 0.2}, "test-fraction: it has nothing to hold out"),
        ({"num-client": 3}, "Unknown key 'num-client'; did you mean 'num-clients'?"),
        ({"zzz": 3}, "Unknown key 'zzz'; the keys are task, data, "),
        ({"fraction-train": 1.5, "seed": -1}, "seed: -1 should be greater than or equal to 0."),
    ],
)
def test_a_wrong_value_is_one_clear_line(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_config(values, {})
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "default factory" not in str(caught.value)


def test_python_users_get_the_same_error() -> None:
    with pytest.raises(ConfigError, match="alpha"):
        RunConfig(alpha=-1)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"seed = 1\nr = = 2", "is not valid TOML: Invalid value (at line 2, column 5)"),
        (b"seed = '\xff'", "it is not UTF-8 text"),
        (b"num-clients = 1\nnum_clients = 2", "gives 'num-clients' twice"),
        (None, "No such file or directory"),
    ],
)
def test_an_unusable_file_is_one_clear_line(tmp_path: Path, content: bytes | None, expected: str) -> None:
    path = tmp_path / "study.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


configs = st.fixed_dictionaries(
    {},
    optional={
        "data": st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
        "alpha": st.floats(1e-300, 1e300),
        "learning_rate": st.floats(1e-9, 10),
        "seed": st.integers(0, 2**63 - 1),
        "rank_budget": st.sampled_from([1, 16, "normal", tuple(range(1, 11))]),
        "strip_newsgroups": st.booleans(),
        "target_modules": st.sampled_from([("query",), ("query", "value")]),
        "client_column": st.none(),
        "output_dir": st.sampled_from(['with "quotes"', "back\\slash", "ünïcode\t"]),
    },
)


@given(configs)
def test_what_is_dumped_loads_back_equal(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> None:
    if isinstance(values.get("rank_budget"), tuple):
        values.pop("client_column", None)
    config = RunConfig(**values)
    path = tmp_path_factory.getbasetemp() / "config.toml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert make_config(load_config(path), {}) == config
    assert "_" not in "".join(load_config(path))


def test_every_field_has_a_description_and_a_group() -> None:
    fields = RunConfig.model_fields
    for name, info in fields.items():
        assert (info.description or "").endswith("."), name
        assert marks_of(info).group, name
        assert kebab(name) == info.alias


@pytest.mark.parametrize(
    ("spec", "counts"),
    [
        ("uniform", {1: 6, 2: 6, 4: 6, 8: 6, 16: 6}),
        ("heavy-tail", {1: 16, 2: 8, 4: 4, 8: 2}),
        ("normal", {1: 3, 2: 7, 4: 10, 8: 7, 16: 3}),
    ],
)
def test_distributions_are_those_of_table_8(spec: str, counts: dict[int, int]) -> None:
    assert Counter(rank_budgets(spec, 30, 16, rng())) == counts


def test_shares_are_rounded_by_largest_remainder() -> None:
    # 16:8:4:2 over 10 clients are 5.33, 2.67, 1.33, 0.67.
    assert Counter(rank_budgets("heavy-tail", 10, 8, rng())) == {1: 5, 2: 3, 4: 1, 8: 1}


@given(st.sampled_from(DISTRIBUTIONS), st.integers(1, 200), st.integers(0, 9))
def test_every_client_gets_one_budget_and_the_generator_decides_which(spec: str, num_clients: int, seed: int) -> None:
    first, second = (rank_budgets(spec, num_clients, 16, np.random.default_rng(seed)) for _ in range(2))
    assert first == second
    assert len(first) == num_clients
    assert all(type(budget) is int for budget in first)


def test_numbers_and_lists_are_kept() -> None:
    assert rank_budgets(3, 4, 16, rng()) == (3, 3, 3, 3)
    assert rank_budgets([1, 2, 4], 3, 4, rng()) == (1, 2, 4)


@pytest.mark.parametrize(
    ("spec", "num_clients", "expected"),
    [
        ([1, 2], 3, "2 numbers for 3"),
        (32, 3, "above r"),
        ("normal", 3, "above r"),
        ("flat", 3, "no distribution"),
        (1, 0, "below 1"),
    ],
)
def test_impossible_budgets(spec: Any, num_clients: int, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        rank_budgets(spec, num_clients, 8, rng())


PASSED_OVER: list[tuple[dict[str, Any], str]] = [
    ({"client_column": "user", "partitioner": "iid"}, "client-column"),
    ({"client_column": "user", "partitioner": "dirichlet"}, "client-column"),
    ({"client_column": "user", "partitioner": "quantity"}, "client-column"),
    ({"client_column": "user", "partitioner": "pathological"}, "client-column"),
    ({"alpha": 0.1, "partitioner": "iid"}, "alpha"),
    ({"alpha": 0.1, "partitioner": "pathological"}, "alpha"),
    ({"alpha": 0.1, "client_column": "user"}, "alpha"),
    ({"min_client_examples": 5}, "min-client-examples"),
    ({"laplace_clipping_norm": 3.0}, "laplace-clipping-norm"),
    ({"probe_batches": 3}, "probe-batches"),
    ({"method": "fl-lora", "probe": "reuse"}, "probe"),
    ({"method": "fl-lora", "criterion": "magnitude"}, "criterion"),
    ({"method": "fl-lora", "alternating": False}, "alternating"),
    ({"text_column": "a", "label_column": "a"}, "text-column"),
    ({"text_column": "a", "client_column": "a"}, "text-column"),
    ({"test_data": "x.csv", "test_fraction": 0.5}, "test-fraction"),
    ({"test_data": "x.csv", "validation_fraction": 0.5}, "test-data"),
]


@pytest.mark.parametrize(("values", "option"), PASSED_OVER)
def test_an_option_without_effect_is_refused_by_name(values: dict[str, Any], option: str) -> None:
    with pytest.raises(ConfigError, match=option) as caught:
        RunConfig(**values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {"client_column": "user"},
        {"client_column": "user", "min_client_examples": 5},
        {"alpha": 0.1},
        {"alpha": 0.1, "partitioner": "quantity"},
        {"partitioner": "iid"},
        {"laplace_epsilon": 1.0, "laplace_clipping_norm": 3.0},
    ],
)
def test_options_with_an_effect_pass_and_load_back(values: dict[str, Any], tmp_path: Path) -> None:
    config = RunConfig(**values)
    (tmp_path / "config.toml").write_text(dump_config(config))
    assert make_config(load_config(tmp_path / "config.toml"), {}) == config


@pytest.mark.parametrize(
    "option", ["num-clients", "num-server-rounds", "local-epochs", "batch-size", "max-length", "probe-batches", "r"]
)
def test_numbers_that_no_machine_holds_are_refused(option: str) -> None:
    with pytest.raises(ConfigError, match=option):
        make_config({}, {option: 10**9, **({"probe": "gradient"} if option == "probe-batches" else {})})
