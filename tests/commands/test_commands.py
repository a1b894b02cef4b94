"""What evaluate, predict, cost and methods print."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from cli_helpers import fake, one_error
from lora_a2.cli import main


class Found:
    """An evaluation, as `Evaluation` shows itself."""

    metrics: ClassVar[dict[str, float]] = {"accuracy": 0.75, "macro_f1": 0.5}
    num_examples = 1200
    client_mean: float | None = 0.7
    client_worst_tenth: float | None = 0.25
    client_std: float | None = 0.1
    extra: ClassVar[dict[str, float]] = {"majority_accuracy": 0.33}
    tables: ClassVar[dict[str, Any]] = {
        "classes": [
            {"label": f"[b]class {k}", "num_examples": 1000 + k, "f1": None, "recall": 0.125} for k in range(30)
        ],
        "confusions": [],
    }

    def to_json(self) -> dict[str, Any]:
        return {"accuracy": self.metrics["accuracy"]}


@pytest.fixture(autouse=True)
def _run_directory(tmp_path: Path) -> None:
    """What stand-ins are given looks like a run."""
    (tmp_path / "adapter_config.json").touch()


def test_evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[Any] = []

    def evaluate_run(run_dir: Path, **options: Any) -> Found:
        calls.append((run_dir, options))
        return Found()

    fake(monkeypatch, "lora_a2.runs.measuring", evaluate_run=evaluate_run)
    assert main(["evaluate", str(tmp_path), "--data", "new.csv", "--text-column", "body"]) == 0
    options: dict[str, Any] = {"data": "new.csv", "text_column": "body", "label_column": None, "client_column": None}
    options |= dict.fromkeys(("separator", "encoding", "on_missing"))
    options |= dict.fromkeys(("prompt_column", "completion_column", "messages_column", "references_column"))
    options |= {"trust_remote_code": False, "generate": 0}
    assert calls == [(tmp_path, options)]
    printed = capsys.readouterr().out
    for part in ("1,200", "75.0 %", "50.0 %", "70.0 %", "25.0 %", "10.0 %"):
        assert part in printed
    assert "Always the largest class  33.0 %" in printed
    assert [line.split() for line in printed.splitlines() if "[b]class 19" in line] == [
        ["[b]class", "19", "1,019", "-", "12.5", "%"]
    ]
    assert "[b]class 20" not in printed and "and 10 more: --json has all of them" in printed
    assert "Confusions" not in printed
    monkeypatch.setattr(Found, "client_worst_tenth", None)
    assert main(["evaluate", str(tmp_path)]) == 0
    assert "Worst" not in capsys.readouterr().out
    assert main(["evaluate", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"accuracy": 0.75}


class Oracle:
    """Likes a label the more, the longer the text and the later the label."""

    label_names = ("refund", "parcel", "account", "other")
    batches: list[int] = []  # noqa: RUF012

    def predict(self, texts: list[str]) -> np.ndarray:
        self.batches.append(len(texts))
        weights = np.array([[float(len(text)) ** i for i in range(4)] for text in texts])
        return np.asarray(weights / weights.sum(1, keepdims=True))


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> Oracle:
    fake(monkeypatch, "lora_a2.runs.predict", load_predictor=lambda run_dir, **options: Oracle())
    monkeypatch.setattr(Oracle, "batches", [])
    return Oracle()


def test_predict_prints_the_likeliest_labels(
    oracle: Oracle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(tmp_path), "ab", "abc"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("ab\n   53.3%  other\n   26.7%  account\n   13.3%  parcel\nabc\n")
    assert main(["predict", str(tmp_path), "--top", "9", "--json", "ab"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["text"] == "ab"
    assert [p["label"] for p in row["predictions"]] == ["other", "account", "parcel", "refund"]
    assert sum(p["probability"] for p in row["predictions"]) == pytest.approx(1)


def test_predict_reads_lines_in_batches(
    oracle: Oracle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one line\n\n  \n" + "täxt\n" * 70))
    assert main(["predict", str(tmp_path), "--top", "1", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in rows] == ["one line"] + ["täxt"] * 70
    assert Oracle.batches == [64, 7]


class Terminal(io.StringIO):
    """Standard input that a person sits at."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stdin", "expected"),
    [
        (Terminal(), "No text given: name one, or pipe lines in."),
        (io.StringIO("\n \n"), "standard input has none"),
        (io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), "utf-8"), "Standard input is not utf-8 text."),
    ],
)
def test_predict_without_usable_text(
    stdin: Any,
    expected: str,
    oracle: Oracle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stdin", stdin)
    assert main(["predict", str(tmp_path)]) == 2
    assert expected in one_error(capsys)


COST = ["cost", "--model", "roberta-base", "--num-clients", "30", "--num-server-rounds", "50"]


def test_cost_gives_the_paper_s_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COST, "--method", "fl-lora", "--r", "8", "--json"]) == 0
    cost = json.loads(capsys.readouterr().out)
    assert cost["uploaded_parameters"] == pytest.approx(1.99e9, rel=0.003)
    assert cost["full_finetuning_parameters"] == pytest.approx(187e9, rel=0.003)
    assert {"uploaded_bytes", "downloaded_parameters", "downloaded_bytes", "reduction_percent"} < set(cost)


def test_cost_is_that_of_the_method_with_its_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """RoBERTa-base has 12 blocks with 4 square layers and one up and one down; B of all of them has this many values a rank."""
    # Round 1 carries nothing; from then on what 30 clients may have changed: all 16 slices but the share (15/16)³⁰.
    b_values = 12 * (4 * 768 + 3072 + 768) * 16 * 30 * 49
    changed = 1 - (15 / 16) ** 30
    path = tmp_path / "study.toml"
    path.write_text("alternating = false\nrank-budget = 1")
    found = []
    for more in ([], ["--config", str(path)], ["--no-alternating", "--rank-budget", "1"]):
        assert main([*COST, "--json", *more]) == 0
        found.append(json.loads(capsys.readouterr().out)["downloaded_parameters"])
    # A has as many values as B in this model: of both together as many change as of B alone, which is then all that travels.
    alternating = 1 - (14 / 16) ** 30
    assert found == [pytest.approx(b_values * share, rel=1e-6) for share in (alternating, changed, changed)]


def test_cost_of_a_language_model_is_what_its_factors_weigh(capsys: pytest.CaptureFixture[str]) -> None:
    """Rank 32 on the queries (4096 × 4096) and values (1024 × 4096) of Mistral-7B's 32 layers, for 2 of 20 clients in 200 rounds:
    43.6 GB both ways if every message carries all. Ours do not in round 1, since the start follows from the seed."""
    values = 32 * 32 * ((4096 + 4096) + (1024 + 4096))
    assert 2 * 2 * 200 * 4 * values == 43_620_761_600
    argv = [
        "cost",
        "--model",
        "Mistral-7B-v0.3",
        "--method",
        "fl-lora",
        "-r",
        "32",
        "--target-modules",
        "q_proj,v_proj",
    ]
    argv += ["--num-clients", "20", "--fraction-train", "0.1", "--num-server-rounds", "200", "--json"]
    assert main(argv) == 0
    cost = json.loads(capsys.readouterr().out)
    assert cost["clients_per_round"] == 2
    assert 2 * 4 * cost["uploaded_parameters"] == 43_620_761_600
    assert cost["downloaded_parameters"] == 2 * 199 * values
    frames = 2 * 200 * 64  # of header, bitmap and checksum
    assert cost["uploaded_bytes"] == 4 * cost["uploaded_parameters"] + frames
    assert cost["full_finetuning_parameters"] == 2 * 200 * (
        7_248_023_552 - 32768 * 4096
    )  # without the head, which is frozen


def test_cost_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    argv = [*COST, "--rank-budget", "heavy-tail", "--target-modules", "query,value", "--wire-dtype", "fp16"]
    assert main([*argv, "--fraction-train", "0.5"]) == 0
    printed = capsys.readouterr().out
    for part in ("Clients a round", "15", "depending on the ranks chosen", "Full fine-tuning would upload", "MB"):
        assert part in printed


def test_cost_needs_a_number_of_clients(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "study.toml"
    path.write_text("client-column = 'user'")
    assert main(["cost", "--config", str(path)]) == 2
    assert "num-clients: the natural partitioner takes it from the data" in one_error(capsys)


def test_methods(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    printed = capsys.readouterr().out
    assert "B, then A" in printed
    assert "A and B" in printed
    assert "AISTATS 2017" in printed
    assert main(["methods", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows["lora-a2"]["odd_rounds"] == ["B"]
    assert rows["fl-lora"]["exact"] is False
    assert rows["fedsa-lora"]["personal"] is True


def test_texts_that_are_not_utf8_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(tmp_path), "caf\udce9"]) == 2
    assert "is not UTF-8 text" in one_error(capsys)
