"""`lora-a2 partition`, and the data options that an experiment needs: validation and smaller test sets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cli_helpers import one_error
from federation import save_data
from lora_a2.cli import main
from lora_a2.config.run import RunConfig
from lora_a2.data.sources import load_data
from lora_a2.data.split import split_data, split_table
from lora_a2.errors import ConfigError


@pytest.fixture
def texts(tmp_path: Path) -> str:
    return str(save_data(tmp_path / "texts.csv", 60))


def test_partition_shows_the_split_that_a_run_gets(
    texts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["partition", "--data", texts, "--num-clients", "4", "--alpha", "0.3", "--seed", "5"]
    assert main([*argv, "--json", "--csv", str(tmp_path / "split.csv")]) == 0
    found = json.loads(capsys.readouterr().out)
    config = RunConfig(data=texts, num_clients=4, alpha=0.3, seed=5)
    data = load_data(**config.data_options())
    split = split_data(data, **config.split_options())
    assert [row["train_examples"] for row in found["clients"]] == [len(part) for part in split.train]
    assert [row["test_examples"] for row in found["clients"]] == [len(part) for part in split.test]
    assert [row["train_classes"] for row in found["clients"]] == [len(set(data.train.labels[p])) for p in split.train]
    assert found["train_examples"] == len(data.train)
    assert found["max_train_examples"] == max(map(len, split.train))
    assert found["clients_without_test"] == sum(len(part) == 0 for part in split.test)
    table = np.loadtxt(tmp_path / "split.csv", delimiter=",", skiprows=1, usecols=(1, 2, 3))
    np.testing.assert_array_equal(table, split_table(data, split).train)


def test_partition_as_a_table(texts: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["partition", "--data", texts, "--num-clients", "2", "--partitioner", "quantity"]) == 0
    printed = capsys.readouterr().out
    for part in ("client-0", "client-1", "Largest class", "of a client, max / min", "Test examples"):
        assert part in printed


def test_partition_refuses_what_a_run_would(texts: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["partition", "--data", texts, "--num-clients", "3", "--partitioner", "pathological"]) == 2
    assert "give an even number" in one_error(capsys)


def test_validation_examples_come_from_the_training_set(tmp_path: Path) -> None:
    for part, count in (("train", 60), ("test", 12)):
        save_data(tmp_path / f"{part}.csv", count)
    usual = load_data(str(tmp_path))
    tuned = load_data(str(tmp_path), validation_fraction=0.25)
    assert (len(tuned.train), len(tuned.test)) == (45, 15)
    assert sorted([*tuned.train.texts, *tuned.test.texts]) == sorted(usual.train.texts)


def test_a_smaller_test_set_is_stratified(tmp_path: Path) -> None:
    for part, count in (("train", 12), ("test", 60)):
        save_data(tmp_path / f"{part}.csv", count)
    small = load_data(str(tmp_path), max_test_examples=9)
    assert np.bincount(small.test.labels).tolist() == [3, 3, 3]
    assert load_data(str(tmp_path), max_test_examples=9).test.texts == small.test.texts
    with pytest.raises(ConfigError, match="max-test-examples is 2, but the data has 3 classes"):
        load_data(str(tmp_path), max_test_examples=2)


def test_users_of_the_airline_tweets(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(shared / "data" / "airline_by_user" / "tweets.jsonl.gz")
    argv = ["partition", "--data", data, "--client-column", "user", "--min-client-examples", "5", "--json"]
    assert main(argv) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["min_train_examples"] == 5
    assert 200 < found["num_clients"] < 460, "460 have 5 tweets, of which a share is held out for testing"
    assert found["clients_without_test"] < found["num_clients"] / 4
