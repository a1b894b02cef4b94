"""What tests of the command line share."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest


def one_error(capsys: pytest.CaptureFixture[str]) -> str:
    """The error printed; asserts that it is the only output."""
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("lora-a2: error: ")
    assert printed.err.count("\n") == 1
    return printed.err


def fake(monkeypatch: pytest.MonkeyPatch, module: str, **names: Any) -> None:
    """Stands in for a module that commands import."""
    stand_in = types.ModuleType(module)
    vars(stand_in).update(names)
    monkeypatch.setitem(sys.modules, module, stand_in)
