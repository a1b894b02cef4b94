"""The keys of the repository's own Flower app are the options: `python tests/flower/test_app_keys.py` rewrites them."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from lora_a2.flower.new_app import config_block, default_config

PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
HEADING = "[tool.flwr.app.config]\n"
SHORT = {"num-server-rounds": 3}
"""So that the first try is short."""


def expected() -> dict[str, Any]:
    return {**default_config(), **SHORT}


def test_the_repository_s_app_has_every_key_with_its_default() -> None:
    found = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["tool"]["flwr"]["app"]["config"]
    assert found == expected(), "run: python tests/flower/test_app_keys.py"
    assert list(found) == list(expected()), "run: python tests/flower/test_app_keys.py"


if __name__ == "__main__":
    above, _, _ = PROJECT.read_text(encoding="utf-8").partition(HEADING)  # the keys are the last of the file
    PROJECT.write_text(f"{above}{HEADING}{config_block(expected())}\n", encoding="utf-8")
