"""Exports of finished runs: read by PEFT and Transformers, with a card that says what they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import plain_writers
from cli_helpers import one_error
from lora_a2.cli import main
from lora_a2.config.run import RunConfig
from lora_a2.federation.loop import Observer
from lora_a2.runs.jobs import launch
from lora_a2.runs.predict import load_predictor
from lora_a2.runs.writer import load_writer
from writers import whole_model

ROWS = [{"prompt": "the hen", "completion": "is in", "who": w} for w in "abab"]


def writing_run(folder: Path, method: str) -> Path:
    whole_model("llama").save_pretrained(folder / "model")
    plain_writers.tokenizer().save_pretrained(folder / "model")
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS * 3))
    options: dict[str, Any] = {
        "model": str(folder / "model"),
        "data": str(folder / "chats.jsonl"),
        "client_column": "who",
    }
    config = RunConfig(
        **options,
        method=method,
        dtype="float32",
        r=4,
        num_server_rounds=2,
        learning_rate=0.02,
        output_dir=str(folder / "run"),
    )
    launch(config, Observer())
    return folder / "run"


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # PEFT's own
@pytest.mark.parametrize("method", ["lora-a2", "flora"])
def test_a_model_that_writes(method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    run = writing_run(tmp_path, method)
    capsys.readouterr()
    writer = load_writer(run)
    ids = torch.arange(5, 12)[None]
    with torch.no_grad():
        expected = writer.model(input_ids=ids).logits.numpy()
    assert main(["export", str(run), str(tmp_path / "merged"), "--merged"]) == 0
    kinds: list[tuple[str, Any]] = [("merged", AutoModelForCausalLM)]
    if method == "flora":
        capsys.readouterr()
        assert main(["export", str(run), str(tmp_path / "adapter")]) == 2
        assert "flora moves base weights" in one_error(capsys)
    else:
        assert main(["export", str(run), str(tmp_path / "adapter")]) == 0
        kinds.append(("adapter", AutoPeftModelForCausalLM))
    for name, kind in kinds:
        with torch.no_grad():
            found = kind.from_pretrained(tmp_path / name).eval()(input_ids=ids).logits.numpy()
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
        card = (tmp_path / name / "README.md").read_text()
        assert f"| Method | {method}, rank 4, 2 server rounds, seed 0 |" in card and "| Perplexity |" in card
        assert card.startswith("---\nbase_model: ") and "text-generation" in card
        again = load_writer(tmp_path / name)
        with torch.no_grad():
            np.testing.assert_allclose(again.model(input_ids=ids).logits.numpy(), expected, atol=1e-5)
    capsys.readouterr()
    assert main(["export", str(run), str(tmp_path / "merged"), "--merged"]) == 2
    assert "not empty" in one_error(capsys)


def test_a_classifier(options: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    launch(RunConfig(**{**options, "output_dir": str(run)}), Observer())
    for name, more in (("adapter", []), ("merged", ["--merged"])):
        assert main(["export", str(run), str(tmp_path / name), *more]) == 0
        ours, theirs = (load_predictor(folder).logits(["w3 w4", "w5"]) for folder in (run, tmp_path / name))
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_hub_that_does_not_answer(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launch(RunConfig(**{**options, "output_dir": str(tmp_path / "run")}), Observer())
    told: list[Any] = []

    class Hub:
        def create_repo(self, name: str, exist_ok: bool) -> None:
            told.append(name)

        def upload_folder(self, *, repo_id: str, folder_path: Path) -> None:
            told.append((repo_id, sorted(p.name for p in folder_path.iterdir())))
            if repo_id == "me/down":
                raise OSError("no\nroute")

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    capsys.readouterr()
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "one"), "--push-to-hub", "me/it"]) == 0
    assert told[0] == "me/it" and "README.md" in told[1][1] and "adapter_config.json" in told[1][1]
    capsys.readouterr()
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "two"), "--push-to-hub", "me/down"]) == 2
    assert "is written, but not on the hub as me/down: no route" in one_error(capsys)
    assert (tmp_path / "two" / "adapter_config.json").is_file()
