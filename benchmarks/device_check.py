"""Checks a machine with a GPU in a few minutes: the device tests, the speed beside a PEFT loop, and a round of a model that writes.

    python benchmarks/device_check.py [--data BANKING77_FOLDER]

Prints what was found, one line each; exits with 1 if a check failed, and with 2 if there is no CUDA device to check.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]


def ran(name: str, *argv: str) -> bool:
    """Runs a command, prints the end of what it says, how long it took and whether it passed."""
    began = time.perf_counter()
    found = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    for line in (found.stdout + found.stderr).splitlines()[-8:]:
        print(f"    {line}")
    verdict = "passed" if found.returncode == 0 else f"failed ({found.returncode})"
    print(f"{name}: {verdict} in {time.perf_counter() - began:.0f} s", flush=True)
    return found.returncode == 0


def main() -> int:
    """Runs the checks; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="BANKING77's folder, for the speed beside a PEFT loop")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("There is no CUDA device here: nothing was checked.")
        return 2
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    python = sys.executable
    good = ran("device tests", python, "-m", "pytest", "-q", "tests/engine/test_cuda.py", "tests/engine/test_device.py")
    with tempfile.TemporaryDirectory() as folder:
        good &= ran(
            "a round of a model that writes",
            *(python, "-c", "from lora_a2.cli import main; raise SystemExit(main())"),
            *("run", "--data", "shopdesk", "--client-column", "department", "--device", "cuda"),
            *("--num-server-rounds", "1", "--local-epochs", "1", "--output-dir", str(Path(folder) / "run")),
        )
    if given.data is not None:
        figure = (
            "--only",
            "S_gpu",
            "--device",
            "cuda",
            "--pairs",
            "1",
            "--clients",
            "8",
            "--clients-per-pass",
            "8",
            "--scratch",
        )
        good &= ran("speed beside a PEFT loop", python, "benchmarks/run.py", "--data", given.data, *figure)
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
