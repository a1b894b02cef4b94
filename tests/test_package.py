"""What is given to others: a source distribution that builds, and a wheel that installs and works without a compiler."""

from __future__ import annotations

import os
import re
import shutil
import site
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

import lora_a2

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
VERSION = PROJECT["project"]["version"]
LEFT_OUT = shutil.ignore_patterns("*.so", "*.egg-info", "__pycache__")
KINDS = re.compile(r"\.(?:so|pyc|pyi?|c)$")


def test_the_version_stands_in_one_place() -> None:
    """All else asks the installed package; an app that is generated has a version of its own."""
    assert lora_a2.__version__ == VERSION
    for path in sorted((ROOT / "src").rglob("*")):
        if path.suffix in (".py", ".toml", ".json", ".conf", ".html"):
            assert VERSION not in path.read_text("utf-8"), path


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which `python -m build` leaves both: the wheel is built out of the source distribution."""
    source = tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT / "src", source / "src", ignore=LEFT_OUT)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "build", "--no-isolation", str(source)]
    built = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    return source / "dist"


def wheel(dist: Path) -> Path:
    (found,) = dist.glob("*.whl")
    return found


@pytest.mark.slow
def test_both_have_all_that_the_program_needs(dist: Path) -> None:
    (archive,) = dist.glob("*.tar.gz")
    assert archive.name == f"lora_a2-{VERSION}.tar.gz"
    assert wheel(dist).name.startswith(f"lora_a2-{VERSION}-cp")
    with tarfile.open(archive) as tar:
        sources = {name.partition("/src/")[2] for name in tar.getnames()}
    with zipfile.ZipFile(wheel(dist)) as packed:
        installed = set(packed.namelist())
    ours = {p.relative_to(ROOT / "src").as_posix() for p in (ROOT / "src" / "lora_a2").rglob("*") if p.is_file()}
    wanted = {name for name in ours if "__pycache__" not in name and not name.endswith(".so")}
    assert len(wanted) > 200 and any(not KINDS.search(name) for name in wanted)
    assert wanted <= sources
    assert wanted <= installed
    if shutil.which("cc"):
        compiled = {name.partition(".")[0].replace("/", ".") for name in installed if name.endswith(".so")}
        assert compiled == {module["name"] for module in PROJECT["tool"]["setuptools"]["ext-modules"]}


@pytest.fixture(scope="module")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an empty environment with the wheel; what it depends on is taken from this one."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel(dist))], check=True, env={**os.environ, "PYTHONPATH": "", "CC": "no-compiler"})
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "theirs.pth").write_text("\n".join(site.getsitepackages()))  # after its own, and without what they link
    return folder / "bin"


def run(programs: Path, folder: Path, *command: str) -> str:
    """What a program of the environment prints, where there is no other program."""
    env = {
        "PATH": str(programs),
        "HOME": str(folder),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "CC": "no-compiler",
    }
    done = subprocess.run([programs / command[0], *command[1:]], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


CHECK = """
import lora_a2, sys
from importlib.metadata import distribution
from lora_a2.engine.kernels import _attention, _skinny, _table
for module in (lora_a2, _attention, _skinny, _table):
    assert module.__file__.startswith(sys.prefix), module.__file__
assert str(distribution("lora-a2").locate_file("")).startswith(sys.prefix)
"""


@pytest.mark.slow
def test_the_wheel_runs_the_main_job(installed: Path, tmp_path: Path) -> None:
    assert run(installed, tmp_path, "lora-a2", "--version").strip().endswith(VERSION)
    if shutil.which("cc"):
        run(installed, tmp_path, "python", "-c", CHECK)
    assert "124,645,632" in run(
        installed,
        tmp_path,
        "lora-a2",
        "cost",
        "--num-clients",
        "1",
        "--num-server-rounds",
        "1",
        "--model",
        "roberta-base",
    )
    assert run(installed, tmp_path, "lora-a2", "partition", "--data", "shopdesk", "--client-column", "department")
    few = ["--num-server-rounds", "1", "--num-clients", "2", "--max-examples", "96", "--max-test-examples", "60"]
    printed = run(installed, tmp_path, "lora-a2", "run", *few, "--output-dir", "job", "--quiet")
    assert re.search(r"^Test accuracy +\d", printed, re.M)
    assert "%" in run(installed, tmp_path, "lora-a2", "predict", "job", "where is my parcel?")
    run(installed, tmp_path, "lora-a2", "report", "job", "--output", "report.html")
    assert "<html" in (tmp_path / "report.html").read_text("utf-8")
    run(installed, tmp_path, "lora-a2", "flower", "new", "tickets")
    assert (tmp_path / "tickets" / "pyproject.toml").is_file()
