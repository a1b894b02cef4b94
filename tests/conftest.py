"""Fixtures that several test files share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from transformers import BertTokenizerFast

from lora_a2 import simulation
from lora_a2.core.randomness import generator
from lora_a2.engine.pool import Pool
from lora_a2.federation.loop import Plan
from lora_a2.model.pretrained import Model
from run_files import run_options
from tiny import LABELS, WORDS, backbone

# Small products on many threads mostly wait for each other: on a busy machine a test took 40 times as long.
torch.set_num_threads(1)
# How long an example takes depends on who else computes.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def _active_environment() -> Iterator[None]:
    """The programs of the environment that runs the tests are found by a shell, as where it has been activated."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_worker() -> Iterator[None]:
    """Runs that do not ask for workers have one, this process: to fork it for every round takes longer than a tiny round."""
    usual = simulation.make_pool

    def make_pool(model: Model, plan: Plan, *, fork: bool = True) -> Pool:
        return usual(model, replace(plan, num_workers=plan.num_workers or 1), fork=fork)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulation, "make_pool", make_pool)
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real test data beside the project; tests that need it skip if it is missing."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "data").is_dir():
        pytest.skip(f"no test data at {folder}/data")
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a tokenizer that knows `WORDS`."""
    folder = tmp_path_factory.mktemp("model")
    backbone("bert").save_pretrained(folder)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 training and 12 test texts, whose last word tells the label."""
    folder = tmp_path_factory.mktemp("data")
    rng = generator(0, "test-texts")
    for part, count in (("train", 36), ("test", 12)):
        rows = [f"{' '.join(rng.choice(WORDS, 5))} {WORDS[k % 3]},{LABELS[k % 3]}" for k in range(count)]
        (folder / f"{part}.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    return folder


@pytest.fixture
def options(model_folder: Path, data_folder: Path) -> dict[str, Any]:
    """Options of a run that takes a second."""
    return run_options(model_folder, data_folder)
