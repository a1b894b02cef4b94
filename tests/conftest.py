"""Fixtures that several test files share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

# Small products on many threads mostly wait for each other: on a busy machine a test took 40 times as long.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real test data beside the project; tests that need it skip where it is missing."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "data").is_dir():
        pytest.skip(f"no test data at {folder}/data")
    return folder
