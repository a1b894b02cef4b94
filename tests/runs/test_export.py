"""Exports of finished runs: read by PEFT and Transformers, with a card that says what they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import plain_writers
from cli_helpers import one_error
from lora_a2.cli import main
from lora_a2.config.run import RunConfig
from lora_a2.core.types import Layout, ModuleShape, weight_name
from lora_a2.federation.observer import Observer
from lora_a2.model.concatenated import concatenated
from lora_a2.runs.jobs import launch
from lora_a2.runs.predict import load_predictor
from lora_a2.runs.writer import load_writer
from tiny import random_adapter
from writers import whole_model

ROWS = [{"prompt": "the hen", "completion": "is in", "who": w} for w in "abab"]


def writing_run(folder: Path, method: str, rank: int = 4, rounds: int = 2) -> Path:
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
        **({} if method == "full" else {"r": rank}),
        num_server_rounds=rounds,
        learning_rate=0.02,
        output_dir=str(folder / "run"),
    )
    launch(config, Observer())
    return folder / "run"


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # PEFT's own
@pytest.mark.parametrize("method", ["lora-a2", "flora", "full"])
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
    if method == "full":
        capsys.readouterr()
        assert main(["export", str(run), str(tmp_path / "adapter")]) == 2
        assert "full moves base weights, and no small adapter is the whole result" in one_error(capsys)
    else:
        assert main(["export", str(run), str(tmp_path / "adapter")]) == 0
        kinds.append(("adapter", AutoPeftModelForCausalLM))
    for name, kind in kinds:
        with torch.no_grad():
            found = kind.from_pretrained(tmp_path / name).eval()(input_ids=ids).logits.numpy()
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
        card = (tmp_path / name / "README.md").read_text()
        assert (
            f"| Method | {method}, rank " in card and "2 server rounds, seed 0 |" in card and "| Perplexity |" in card
        )
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


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # PEFT's own
@pytest.mark.parametrize("method", ["flora", "fedex-lora"])
def test_what_few_rounds_taught_is_one_adapter(method: str, tmp_path: Path) -> None:
    """Of the sum of the clients' ranks: 2 clients of rank 1, and for FedEx-LoRA the mean adapter beside."""
    from peft import AutoPeftModelForCausalLM

    run = writing_run(tmp_path, method, rank=1, rounds=1)
    assert main(["export", str(run), str(tmp_path / "adapter")]) == 0
    rank = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"]
    assert rank <= 3
    ids = torch.arange(5, 12)[None]
    with torch.no_grad():
        expected = load_writer(run).model(input_ids=ids).logits.numpy()
        found = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()(input_ids=ids).logits.numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(0, 3))
def test_an_adapter_is_exact_or_there_is_none(seed: int, rank: int, moved: int) -> None:
    """Modules of unequal shapes whose base weights moved by a product of rank `moved`."""
    layout = Layout((ModuleShape("one", 40, 24), ModuleShape("two", 24, 56)))
    adapter, rng = random_adapter(layout, rank, seed), np.random.default_rng(seed)

    def product(module: ModuleShape, size: int) -> np.ndarray:
        return (rng.normal(size=(module.d_out, size)) @ rng.normal(size=(size, module.d_in))).astype(np.float32)

    base = {weight_name(m.name): product(m, moved) for m in layout.modules}
    found = concatenated(adapter, base)
    assert found is not None and found.rank <= rank + moved
    for m in layout.modules:
        f, g = found.factors[m.name], adapter.factors[m.name]
        expected = base[weight_name(m.name)] + adapter.scaling * g.B @ g.A
        assert np.linalg.norm(found.scaling * f.B @ f.A - expected) <= 2e-5 * np.linalg.norm(expected)
    dense = {weight_name(m.name): rng.normal(size=(m.d_out, m.d_in)).astype(np.float32) for m in layout.modules}
    assert concatenated(adapter, dense) is None
    assert concatenated(adapter, base | {"other.weight": np.ones((2, 2), np.float32)}) is None
