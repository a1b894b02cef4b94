"""Which runs have a language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_a2.config.run import RunConfig
from lora_a2.errors import RunError
from lora_a2.federation.loop import Observer
from lora_a2.runs.jobs import launch
from lora_a2.runs.writer import load_writer


def test_a_classifier_writes_nothing(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run directory"):
        load_writer(tmp_path)
    launch(RunConfig(**{**options, "output_dir": str(tmp_path / "run")}), Observer())
    with pytest.raises(RunError, match="label some with 'lora-a2 predict"):
        load_writer(tmp_path / "run")
