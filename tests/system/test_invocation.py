"""What is printed to be typed works where it is printed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lora_a2.system.invocation import installer, program


def environment(folder: Path) -> Path:
    """A folder with the programs of a virtual environment."""
    place = folder / ".venv" / "bin"
    place.mkdir(parents=True)
    for name in ("lora-a2", "pip", "python"):
        (place / name).write_text("#!/bin/sh\n")
        (place / name).chmod(0o755)
    return place


@pytest.mark.parametrize("active", [True, False])
@pytest.mark.parametrize("called", ["lora-a2", "__main__.py"])
def test_a_command_is_named_as_it_can_be_typed(
    active: bool, called: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = environment(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(place) if active else "/nowhere")
    monkeypatch.setattr(sys, "argv", [str(place / called)])
    monkeypatch.setattr(sys, "executable", str(place / "python"))
    assert program() == ("lora-a2" if active else ".venv/bin/lora-a2")
    assert installer("report") == f"{'pip' if active else '.venv/bin/python -m pip'} install 'lora-a2[report]'"


def test_from_elsewhere_the_path_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = environment(tmp_path / "a clone")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "argv", [str(place / "lora-a2")])
    assert program() == f"'{place}/lora-a2'"


def test_where_another_version_is_found_first_the_one_that_runs_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other = environment(tmp_path / "mine"), environment(tmp_path / "other")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(other))
    monkeypatch.setattr(sys, "argv", [str(mine / "lora-a2")])
    assert program() == "mine/.venv/bin/lora-a2"
