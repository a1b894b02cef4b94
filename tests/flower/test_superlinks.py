"""SuperLinks that an earlier `flwr run` left are found, and a run says whether it is in one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("flwr", reason="needs lora-a2[flower]")

from lora_a2.flower import superlinks
from lora_a2.flower.superlinks import local_superlinks, older_than_its_run

CHILD = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"


@pytest.fixture
def left(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    """A process that looks like the one that Flower starts, and a run's process below it."""
    program = tmp_path / "flower-superlink"
    program.write_text(CHILD)
    log = tmp_path / "local-superlink" / "superlink.log"
    command = [sys.executable, str(program), "--simulation", "--log-file", str(log)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    assert process.stdout is not None and process.stdout.readline() == "1\n"
    [run] = psutil.Process(process.pid).children()
    yield process, run
    process.communicate("\n")


def test_it_is_found_with_its_folder_and_its_python(left: Any, tmp_path: Path) -> None:
    [found] = [found for found in local_superlinks() if found.pid == left[0].pid]
    assert found.folder == os.path.realpath(tmp_path)
    assert found.python == sys.executable
    assert found.ours
    assert f"process {left[0].pid} since 20" in str(found)


def test_one_of_another_environment_is_told_apart(left: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    [found] = [found for found in local_superlinks() if found.pid == left[0].pid]
    monkeypatch.setattr(sys, "executable", "/elsewhere/bin/python")
    assert not found.ours


def test_a_run_says_so_if_its_superlink_is_older(left: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, run = left
    assert older_than_its_run(run) is None
    assert older_than_its_run() is None
    monkeypatch.setattr(superlinks, "_NEW_SECONDS", -1.0)
    found = older_than_its_run(run)
    assert found is not None and found.pid == left[0].pid
