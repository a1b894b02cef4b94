"""A language model without a run, and a run on other data, against plain Transformers, each example alone in float32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import plain_writers
from cli_helpers import one_error
from federation import study_options
from lora_a2.cli import main
from lora_a2.config.run import RunConfig
from lora_a2.federation.observer import Observer
from lora_a2.runs.jobs import launch
from lora_a2.runs.writer import load_writer
from writers import PACKED, whole_model

ROWS = [
    {"prompt": "the hen", "completion": "is in the inn", "who": "a"},
    {"prompt": "what is it", "completion": "nothing", "who": "b"},
    {
        "prompt": "a hen is thinking, is it the hen",
        "completion": "no",
        "who": "a",
    },
]


def files(folder: Path, family: str) -> tuple[str, str]:
    whole_model(family).save_pretrained(folder / "model")
    plain_writers.tokenizer().save_pretrained(folder / "model")
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS * 3))
    return str(folder / "model"), str(folder / "chats.jsonl")


def by_transformers(model: nn.Module, folder: str) -> tuple[float, int]:
    """Summed loss and number of the answers' tokens, written out by the template of `plain_writers`."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    total, count = 0.0, 0
    for row in ROWS * 3:
        prompt = tokenizer(f"<|user|>{row['prompt']}<|end|>\n<|assistant|>", add_special_tokens=False)["input_ids"]
        answer = tokenizer(f"{row['completion']}<|end|>", add_special_tokens=False)["input_ids"]
        ids = torch.tensor([prompt + answer])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        total += float(nn.functional.cross_entropy(logits.double(), ids[0, len(prompt) :], reduction="sum"))
        count += len(answer)
    return total, count


@pytest.mark.parametrize("family", [*PACKED, "opt", "bloom"])
def test_the_base_model_is_measured_as_by_transformers(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = files(tmp_path, family)
    argv = ["evaluate", "--model", model, "--data", data, "--task", "causal-lm", "--dtype", "float32", "--json"]
    assert main(argv) == 0
    found = json.loads(capsys.readouterr().out)
    loss, tokens = by_transformers(AutoModelForCausalLM.from_pretrained(model).eval(), model)
    assert found["loss_sum"] == pytest.approx(loss, rel=5e-5)
    assert found["learnt_tokens"] == tokens
    assert (found["examples_used"], found["examples_cut"], found["examples_dropped"]) == (9, 0, 0)
    assert found["perplexity"] == pytest.approx(np.exp(loss / tokens), rel=1e-4)


def test_what_is_cut_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data = files(tmp_path, "llama")
    assert main(["evaluate", "--model", model, "--data", data, "--max-length", "34", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["examples_used"], found["examples_cut"]) == (9, 3)


def test_a_run_and_its_export_on_other_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data = files(tmp_path, "llama")
    options = {"model": model, "data": data, "client_column": "who", "dtype": "float32", "num_server_rounds": 1}
    launch(RunConfig(**options, r=4, learning_rate=0.02, output_dir=str(tmp_path / "run")), Observer())
    assert main(["evaluate", str(tmp_path / "run"), "--data", data, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    loss, tokens = by_transformers(load_writer(tmp_path / "run").model, model)
    base, _ = by_transformers(AutoModelForCausalLM.from_pretrained(model).eval(), model)
    assert found["loss_sum"] == pytest.approx(loss, rel=5e-5) and abs(base - loss) > 0.01 * base
    assert found["learnt_tokens"] == tokens
    assert found["per_client"].keys() == {"a", "b"}


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["evaluate"], "Give a RUN_DIR, or --model and --data."),
        (["evaluate", "--model", "MODEL", "--data", "DATA", "--task", "classification"], "without a run has no labels"),
        (
            ["evaluate", "--model", "MODEL", "--data", "DATA", "--label-column", "who", "--task", "causal-lm"],
            "label-column",
        ),
        (["evaluate", "--model", "MODEL", "--data", "DATA", "--prompt-column", "promt"], "Did you mean 'prompt'?"),
        (["evaluate", "--model", "MODEL", "--data", "DATA", "--max-length", "5"], "choose a larger --max-length"),
        (["partition", "--model", "MODEL", "--data", "DATA", "--show-example", "99"], "There is no example 99"),
    ],
)
def test_what_cannot_be_is_one_line(
    argv: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = files(tmp_path, "llama")
    capsys.readouterr()  # Transformers' progress bars
    assert main([{"MODEL": model, "DATA": data}.get(word, word) for word in argv]) == 2
    assert says in one_error(capsys)


def test_options_of_the_other_task_are_refused(
    options: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launch(RunConfig(**{**options, "output_dir": str(tmp_path / "labels")}), Observer())
    model, data = files(tmp_path, "llama")
    launch(
        RunConfig(model=model, data=data, num_clients=2, num_server_rounds=1, output_dir=str(tmp_path / "texts")),
        Observer(),
    )
    for run, flag, value in (
        ("labels", "--generate", "3"),
        ("labels", "--prompt-column", "text"),
        ("texts", "--label-column", "who"),
    ):
        for more in ([], ["--data", data]) if flag == "--generate" else (["--data", data],):
            capsys.readouterr()
            assert main(["evaluate", str(tmp_path / run), flag, value, *more]) == 2
            assert f"{flag[2:]}: it has no effect on a run of the task" in one_error(capsys)
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "texts"), "--generate", "2", "--json"]) == 0
    assert "bleu" in json.loads(capsys.readouterr().out)


def test_an_example_is_shown_as_it_is_learnt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data = files(tmp_path, "llama")
    assert main(["partition", "--model", model, "--data", data, "--test-data", data, "--show-example", "2"]) == 0
    assert capsys.readouterr().out == "<|user|>what is it<|end|>\n<|assistant|>⟦nothing<|end|>⟧\n"
    assert (
        main(["partition", "--model", model, "--data", data, "--test-data", data, "--show-example", "2", "--json"]) == 0
    )
    found = json.loads(capsys.readouterr().out)
    ids = AutoTokenizer.from_pretrained(model)("nothing<|end|>", add_special_tokens=False)["input_ids"]
    assert [found["input_ids"][i] for i in found["learnt"]] == ids


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(argv) == 2
    return one_error(capsys)


def test_other_data_are_read_as_their_file_wants_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, other = str(tmp_path / "run"), tmp_path / "other.csv"
    launch(RunConfig(**{**study_options(tmp_path), "num_server_rounds": 1}, output_dir=run), Observer())
    other.write_bytes("text;label\nw3 é;late\nw4;broken\n;lost\nw5;never\n".encode("cp1252"))
    argv = ["evaluate", run, "--data", str(other), "--json"]
    assert "try --encoding cp1252" in refused(argv, capsys)
    assert "Row 3 of" in refused([*argv, "--encoding", "cp1252"], capsys)
    assert main([*argv, "--encoding", "cp1252", "--on-missing", "drop"]) == 0
    found = capsys.readouterr()
    assert json.loads(found.out)["num_examples"] == 2
    assert found.err.splitlines() == [
        f"Left out: 1 of 4 rows of '{other}' without a text in column 'text' (row 3).",
        f"Left out: 1 of 3 rows of '{other}' with a label that is not among the 3 known ones: 'never' (row 4).",
    ]
    assert "are of --data: give it too" in refused(["evaluate", run, "--separator", ";"], capsys)


def test_a_writer_s_data_are_read_as_their_file_wants_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, _ = files(tmp_path, "llama")
    other = tmp_path / "other.csv"
    other.write_bytes("prompt^completion\nthe hen^is in the inn\nthe hen^\n".encode("utf-16"))
    argv = ["evaluate", "--model", model, "--data", str(other), "--separator", "^", "--dtype", "float32", "--json"]
    assert "Row 2 of" in refused(argv, capsys)
    assert main([*argv, "--on-missing", "drop"]) == 0
    found = capsys.readouterr()
    assert json.loads(found.out)["examples_used"] == 1
    assert found.err == f"Left out: 1 of 2 rows of '{other}' without an answer in column 'completion' (row 2).\n"
