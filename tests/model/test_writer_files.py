"""What a language model has learnt, read by PEFT and by Transformers, and read back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lora_a2.core.types import ServerState, weight_name
from lora_a2.data.written import Turn
from lora_a2.errors import ModelError, RunError
from lora_a2.model.pretrained import Model, load_model
from lora_a2.runs.jobs import save_result
from lora_a2.runs.writer import load_writer
from plain_writers import tokenizer
from tiny import random_adapter
from writers import PACKED, whole_model

PROMPT = [Turn("user", "the hen is thinking")]
FAMILIES = (*PACKED, "opt", "bloom", "falcon", "gpt_neox", "phi", "granite")


def saved(folder: Path, family: str) -> Path:
    whole = whole_model(family)
    whole.generation_config.eos_token_id = [2, 6]
    whole.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def learnt(model: Model, moved: bool) -> ServerState:
    adapter = random_adapter(model.layout, rank=3)
    rng = np.random.default_rng(0)
    base = {
        weight_name(m.name): 0.1 * rng.standard_normal((m.d_out, m.d_in), np.float32)
        for m in model.layout.modules[: 3 if moved else 0]
    }
    return ServerState(1, adapter, 0, base_delta=base)


def logits(model: torch.nn.Module, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = model(input_ids=torch.from_numpy(ids)[None]).logits[0].numpy()
    return found


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # PEFT's own
@pytest.mark.parametrize("family", FAMILIES)
def test_peft_gives_the_same_logits(family: str, tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM

    model = load_model(str(saved(tmp_path / "model", family)), task="causal-lm", max_length=60, dtype="float32")
    state = learnt(model, moved=False)
    save_result(tmp_path / "adapter", model, state)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"
    writer = load_writer(tmp_path / "adapter")
    ids = writer.encode_prompt(PROMPT)
    theirs = logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval(), ids)
    np.testing.assert_allclose(logits(writer.model, ids), theirs, atol=1e-4 * np.abs(theirs).max())
    model.network.load(state.adapter)
    batch = model.network.pack([[ids]])
    hidden = model.network.hidden(batch).detach().reshape(-1, model.network._width)[: len(ids)]
    ours = model.network.objective.logits(hidden).numpy()  # type: ignore[attr-defined]
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())
    plain = load_model(str(tmp_path / "model"), task="causal-lm", max_length=60).whole
    assert plain is not None
    assert np.abs(theirs - logits(whole_model(family), ids)).max() > 1e-2


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_a_merged_folder_is_a_plain_model(family: str, tmp_path: Path) -> None:
    """Read by `pipeline` in a process that never imports lora_a2; the stop ids are kept."""
    model = load_model(str(saved(tmp_path / "model", family)), task="causal-lm", max_length=60, dtype="float32")
    state = learnt(model, moved=True)
    save_result(tmp_path / "merged", model, state)
    writer = load_writer(tmp_path / "merged")
    ids = writer.encode_prompt(PROMPT)
    model.network.set_base(state.base)
    model.network.load(state.adapter)
    hidden = model.network.hidden(model.network.pack([[ids]])).detach().reshape(-1, model.network._width)[: len(ids)]
    ours = model.network.objective.logits(hidden).numpy()  # type: ignore[attr-defined]
    np.testing.assert_allclose(logits(writer.model, ids), ours, atol=1e-4 * np.abs(ours).max())
    code = (
        "import sys, json, torch\nfrom transformers import pipeline\n"
        f"made = pipeline('text-generation', model={str(tmp_path / 'merged')!r})\n"
        f"out = made.model(input_ids=torch.tensor([{ids.tolist()}])).logits[0]\n"
        "assert not [m for m in sys.modules if m.startswith('lora_a2')]\n"
        "print(json.dumps([out.tolist(), made.model.generation_config.eos_token_id]))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found, stops = json.loads(ran.stdout.splitlines()[-1])
    np.testing.assert_allclose(np.array(found), ours, atol=1e-4 * np.abs(ours).max())
    assert stops == [2, 6]


def test_what_is_damaged_or_another_model_s_is_refused(tmp_path: Path) -> None:
    model = load_model(str(saved(tmp_path / "model", "llama")), task="causal-lm", max_length=60, dtype="float32")
    save_result(tmp_path / "adapter", model, learnt(model, moved=False))
    (tmp_path / "adapter" / "writer.json").write_text("{}")
    with pytest.raises(RunError, match=r"writer\.json"):
        load_writer(tmp_path / "adapter")
    save_result(tmp_path / "adapter", model, learnt(model, moved=False))
    whole_model("llama", seed=1).save_pretrained(tmp_path / "model")
    with pytest.raises(RunError, match="are not those that"):
        load_writer(tmp_path / "adapter")


@pytest.mark.parametrize("family", ["bert", "t5", "mpnet"])
def test_a_model_without_a_causal_head_is_refused(family: str, tmp_path: Path) -> None:
    from families import make

    make(family).save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    with pytest.raises(ModelError) as caught:
        load_model(str(tmp_path / "model"), task="causal-lm")
    assert "\n" not in str(caught.value)
