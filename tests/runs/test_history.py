"""`history`: the ledger as a table, number for number."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from federation import study_options
from lora_a2.config.run import make_config
from lora_a2.errors import RunError
from lora_a2.federation.observer import Observer
from lora_a2.federation.records import RoundRecord
from lora_a2.runs.history import TRAFFIC, history
from lora_a2.runs.jobs import launch, resume
from lora_a2.runs.measuring import evaluate_run
from tiny import Stopping
from writers import writing_options

METRICS = ("accuracy", "macro_f1", "client_mean", "client_worst_tenth", "client_std")


def options(folder: Path) -> dict[str, Any]:
    more = {"method": "fedsa-lora", "num_server_rounds": 5, "eval_every": 2, "record_analysis": False}
    return {**study_options(folder), **more, "output_dir": str(folder / "run")}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five rounds, evaluated after 2, 4 and 5, of a method with personal models."""
    folder = tmp_path_factory.mktemp("history")
    launch(make_config({}, options(folder)), Observer())
    return folder / "run"


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]


def test_every_number_is_the_ledger_s(run: Path) -> None:
    table, ledger = history(run), lines(run)
    assert len(table) == len(ledger) == 5
    for row, line in zip(table.to_dict("records"), ledger, strict=True):
        assert row["server_round"] == line["server_round"]
        assert row["trained"] == "+".join(line["trainable"]) == "A+B"
        assert (row["clients"], row["refused"]) == (len(line["clients"]), 0)
        assert row["train_loss"] == line["train_loss"]
        assert all(row[name] == line[name] for name in TRAFFIC)
        earlier = [other for other in ledger if other["server_round"] <= line["server_round"]]
        assert all(row[f"total_{name}"] == sum(other[name] for other in earlier) for name in TRAFFIC)
        assert row["seconds"] == pytest.approx(sum(line["seconds"].values()))
        assert row["seconds_train"] == line["seconds"]["train"]
        assert row["seconds_evaluate"] == line["seconds"].get("evaluate", 0)
        if row["server_round"] in (2, 4, 5):
            assert all(row[name] == line["metrics"][name] for name in METRICS)
            assert row["personal_accuracy"] == line["metrics"]["personal"]["accuracy"]
        else:
            assert all(np.isnan(row[name]) for name in (*METRICS, "personal_accuracy"))


def test_a_model_that_writes_has_columns_of_its_own(tmp_path: Path) -> None:
    """The same numbers as the ledger's; where nothing was evaluated yet the run's configuration says which columns."""
    own = {"method": "fedsa-lora", "num_server_rounds": 3, "eval_every": 2, "output_dir": str(tmp_path / "run")}
    launch(make_config({}, {**writing_options(tmp_path), **own}), Observer())
    table, ledger = history(tmp_path / "run"), lines(tmp_path / "run")
    metrics = ("perplexity", "loss", "token_accuracy", "client_mean", "client_worst_tenth", "client_std")
    assert list(table.columns[5:12]) == [*metrics, "personal_perplexity"]
    assert not {"accuracy", "macro_f1", "personal_accuracy"} & set(table.columns)
    for row, line in zip(table.to_dict("records"), ledger, strict=True):
        if row["server_round"] == 1:
            assert all(np.isnan(row[name]) for name in (*metrics, "personal_perplexity"))
            continue
        assert all(row[name] == line["metrics"][name] for name in metrics)
        assert row["personal_perplexity"] == line["metrics"]["personal"]["perplexity"]
    records = [RoundRecord.from_json(line) for line in ledger]
    pd.testing.assert_frame_equal(history(records), table)
    assert "perplexity" in history(records[1:]) and "accuracy" in history(records[:1])
    with pytest.raises(KeyboardInterrupt):
        launch(
            make_config({}, {**writing_options(tmp_path), **own, "output_dir": str(tmp_path / "new")}),
            Stopping(after=2),
        )
    begun = history(tmp_path / "new")
    assert (list(begun["server_round"]), list(begun.columns[5:12])) == ([1], [*metrics, "personal_perplexity"])


def test_what_was_written_is_measured_in_columns_of_its_own(tmp_path: Path) -> None:
    for name in ("sacrebleu", "rouge_score"):
        pytest.importorskip(name, reason="metrics of texts are an extra")
    own = {"generate": 2, "eval_every": 2, "output_dir": str(tmp_path / "run")}
    launch(make_config({}, {**writing_options(tmp_path), **own}), Observer())
    table, last = history(tmp_path / "run"), lines(tmp_path / "run")[-1]["metrics"]
    texts = ["exact_match", "rouge_l", "bleu", "chrf"]
    assert list(table.columns[5:12]) == ["perplexity", "loss", "token_accuracy", *texts]
    assert list(table[texts].iloc[-1]) == [last[name] for name in texts]
    assert table[texts].iloc[0].isna().all()


def test_records_give_the_same_table(run: Path) -> None:
    """A generator will do; refused replies are counted; without a round there is a table all the same."""
    records = [RoundRecord.from_json(line) for line in lines(run)]
    pd.testing.assert_frame_equal(history(iter(records)), history(str(run)))
    records[1].refused.update({3: "silent", 4: "silent"})
    assert list(history(records)["refused"]) == [0, 2, 0, 0, 0]
    empty = history([])
    assert len(empty) == 0
    assert [name for name in history(run).columns if not name.startswith("seconds_")] == list(empty.columns)
    assert all(empty.dtypes[name] == history(run).dtypes[name] for name in empty.columns)


def test_a_run_that_goes_on(tmp_path: Path) -> None:
    """Only what was committed is there."""
    with pytest.raises(KeyboardInterrupt):
        launch(make_config({}, options(tmp_path)), Stopping(after=3))
    path = tmp_path / "run"
    before = history(path)
    assert 0 < len(before) < 5
    with (path / "rounds.jsonl").open("a") as ledger:
        ledger.write('{"server_round": 4, "half')
    pd.testing.assert_frame_equal(history(path), before)
    resume(path, Observer())
    pd.testing.assert_frame_equal(history(path).iloc[: len(before)], before)


def test_what_is_no_run_or_damaged(tmp_path: Path, run: Path) -> None:
    with pytest.raises(RunError, match="does not exist"):
        history(tmp_path / "nothing")
    damaged = Path(shutil.copytree(run, tmp_path / "run"))
    text = (damaged / "rounds.jsonl").read_text()
    (damaged / "rounds.jsonl").write_text(text.replace('"uploaded_bytes": ', '"uploaded_bytes": 1', 1))
    with pytest.raises(RunError, match=r"rounds\.jsonl.*damaged") as caught:
        history(damaged)
    assert "\n" not in str(caught.value)


def test_a_run_is_evaluated_on_a_frame_as_on_its_file(run: Path) -> None:
    file = run.parent / "texts.csv"
    frame = pd.read_csv(file)
    found = evaluate_run(run, frame)
    assert (found, found.num_examples) == (evaluate_run(run, str(file)), len(frame))
    halves = evaluate_run(run, {"a": frame[:10], "b": frame[10:]})
    assert (halves.metrics, list(halves.per_client)) == (found.metrics, ["a", "b"])
