"""Systems other than Linux: a Mac has one worker, PyTorch's own products and fewer figures; Windows gets one line of error."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import lora_a2
from cli_helpers import one_error
from lora_a2.cli import main
from lora_a2.config.run import RunConfig
from lora_a2.errors import LoraA2Error
from lora_a2.federation.observer import Observer
from lora_a2.runs.jobs import launch

TESTS = Path(__file__).parents[1]
RUN = """
import json, sys
sys.path.insert(0, {tests!r})
from mac import become_a_mac
become_a_mac()
import lora_a2
from lora_a2.config.run import RunConfig

class Listener(lora_a2.Observer):
    def note(self, line):
        notes.append(line)

notes, config = [], RunConfig(**json.loads(sys.argv[1]))
summary = lora_a2.launch(config, Listener())
again = lora_a2.resume(config.output_dir, Listener())
measured = lora_a2.evaluate_run(config.output_dir)
predicted = lora_a2.load_predictor(config.output_dir).predict(["w0 w1 w2"])
print(json.dumps([summary.to_json(), again.score, measured.metrics['accuracy'], predicted.shape, notes]))
"""


def test_a_whole_run_on_a_mac(options: dict[str, Any], tmp_path: Path) -> None:
    """It trains, resumes, evaluates and predicts in one process, with the results of a run on this machine."""
    given = {**options, "output_dir": str(tmp_path / "mac"), "num_workers": 2, "dtype": "auto"}
    command = [sys.executable, "-c", RUN.format(tests=str(TESTS)), json.dumps(given)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    summary, again, measured, predicted, notes = json.loads(done.stdout)
    here = launch(RunConfig(**{**options, "output_dir": str(tmp_path / "here")}), Observer())
    assert summary["accuracy"] == again == measured == here.metrics["accuracy"]
    assert predicted == [1, 3]
    # As many megabytes as on this machine, in one process or two, and not a thousand times as many.
    assert here.peak_memory_bytes / 4 < summary["peak_memory_bytes"] < 4 * here.peak_memory_bytes
    assert any("one after another" in note for note in notes), notes
    assert any("without a C compiler" in note for note in notes), notes
    mine, theirs = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("here", "mac"))
    assert mine.keys() == theirs.keys()
    for name, values in mine.items():
        np.testing.assert_allclose(theirs[name], values, atol=2e-4)


def test_windows_is_told_to_use_wsl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert main(["methods"]) == 2
    assert "on Windows use WSL" in one_error(capsys)
    with pytest.raises(LoraA2Error, match="use WSL"):
        lora_a2.launch  # noqa: B018
    assert lora_a2.LoraA2Error is LoraA2Error
