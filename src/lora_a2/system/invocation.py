"""How this program is called again, as the user can type it here."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

NAME = "lora-a2"


def program() -> str:
    """`lora-a2` where a shell finds it; else the path of the script that runs, such as `.venv/bin/lora-a2`."""
    script = Path(sys.argv[0])
    if script.name != NAME or not script.is_file():
        script = Path(sys.executable).parent / NAME  # called in another way, as by python -m
    found = shutil.which(NAME)
    if not script.is_file() or (found is not None and os.path.samefile(found, script)):
        return NAME
    return shlex.quote(_near(script))


def installer(extra: str) -> str:
    """The command that adds an extra of this package to the environment that runs."""
    found = shutil.which("pip")
    beside = Path(sys.executable).parent / "pip"
    if found is not None and beside.is_file() and os.path.samefile(found, beside):
        pip = "pip"
    else:
        pip = f"{shlex.quote(_near(Path(sys.executable)))} -m pip"
    return f"{pip} install 'lora-a2[{extra}]'"


def _near(path: Path) -> str:
    """Relative to the working directory where it lies below it."""
    full = path.absolute()
    return str(full.relative_to(Path.cwd())) if full.is_relative_to(Path.cwd()) else str(full)
