"""Models of the hub where the hub is out of reach: one question, one clear line, or the cache on this machine."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import build_hf_headers

from federation import save_model
from lora_a2.errors import ModelError
from lora_a2.model.backbone import load_backbone
from lora_a2.model.catalog import model_config
from lora_a2.model.causal import load_language_model, load_writer_tokenizer
from lora_a2.model.classifier import load_classifier
from lora_a2.model.hub import hub_or_cache

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LOADERS: list[Callable[[str], Any]] = [
    load_backbone,
    load_language_model,
    load_writer_tokenizer,
    lambda name: load_classifier(name, 2),
    model_config,
]


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A machine without a network and with an empty cache; what it asks the hub, and every other connection that is tried."""
    asked: list[str] = []

    def model_info(self: HfApi, repo: str, *, timeout: float) -> None:
        assert 0 < timeout < 10
        asked.append(repo)
        raise OSError("Name or service not known")

    def refuse(*given: object, **_: object) -> None:
        asked.append(f"connection {given}")
        raise OSError("Network is unreachable")

    monkeypatch.setattr(HfApi, "model_info", model_info)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    build_hf_headers()  # once in a process it may ask for a list of its own
    asked.clear()
    return asked


def cached(cache: Path, repo: str, model: Path) -> None:
    """What the hub's client leaves of a model."""
    place = cache / f"models--{repo.replace('/', '--')}"
    shutil.copytree(model, place / "snapshots" / COMMIT)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(COMMIT)


@pytest.mark.parametrize("load", LOADERS[:4])
def test_a_known_model_that_cannot_be_had_is_one_line_after_one_question(
    load: Callable[[str], Any], questions: list[str]
) -> None:
    with pytest.raises(
        ModelError, match=r"'gpt2' is not on this machine, and .* cannot be reached \(Name or"
    ) as caught:
        load("gpt2")
    assert "\n" not in str(caught.value) and "all-MiniLM-L6-v2" in str(caught.value)
    assert questions == ["gpt2"]


@pytest.mark.parametrize("load", LOADERS)
def test_an_unknown_model_s_line_names_the_nearest(load: Callable[[str], Any], questions: list[str]) -> None:
    with pytest.raises(ModelError, match=r"'robrta-base' is not on this machine.*Did you mean 'roberta-base'\?"):
        load("robrta-base")
    assert questions == ["robrta-base"]
    with pytest.raises(ModelError, match="no such folder"):
        load("./no/such/folder")
    assert questions == ["robrta-base"]


def test_offline_by_the_hub_s_own_variable_nothing_is_asked(
    questions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="not on this machine, and HF_HUB_OFFLINE is set"):
        load_backbone("roberta-base")
    assert questions == []


@pytest.mark.parametrize("offline", [False, True])
def test_a_model_in_the_cache_is_loaded_without_another_request(
    questions: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, offline: bool
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    folder = save_model(tmp_path / "model")
    cached(tmp_path / "hub", "someone/toy", folder)
    found = load_backbone("someone/toy")
    assert found.fingerprint == load_backbone(str(folder)).fingerprint
    assert questions == ([] if offline else ["someone/toy"])
    assert constants.HF_HUB_OFFLINE is offline


def test_a_hub_that_answers_is_left_to_its_own_client(
    questions: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with hub_or_cache(str(tmp_path)):  # a folder
        assert questions == []
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: object())
    with hub_or_cache("someone/toy"):
        assert constants.HF_HUB_OFFLINE is False

    def wrong(*_: object, **__: object) -> None:
        raise HFValidationError("no such name")

    monkeypatch.setattr(HfApi, "model_info", wrong)
    with hub_or_cache("so--me/toy"):
        assert constants.HF_HUB_OFFLINE is False
