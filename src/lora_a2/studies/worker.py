"""One run of a batch in a process of its own: python -m lora_a2.studies.worker PARENT BATCH NAME CORES DEVICE.

PARENT is the process that starts it, and takes it along when it ends; DEVICE may be empty.
"""

from __future__ import annotations

import sys

from lora_a2.system.lifeline import end_with_parent
from lora_a2.system.machine import stay_on
from lora_a2.system.signals import interruptible, status


def main(parent: str, path: str, name: str, cores: str, device: str) -> int:
    """Runs it; returns 0, 1 where it failed (the failure is recorded), 128 and a signal's number if it was interrupted."""
    end_with_parent(int(parent))
    try:
        with interruptible(last=True):
            return _run(path, name, cores, device)
    except KeyboardInterrupt:
        return status()


def _run(path: str, name: str, cores: str, device: str) -> int:
    stay_on(map(int, cores.split(",")))  # before torch is imported, which counts them

    from dataclasses import replace
    from pathlib import Path

    from lora_a2.display.live import PlainDisplay
    from lora_a2.studies.batch import Batch

    run = next(run for run in Batch.open(Path(path)).runs if run.name == name)
    if device:
        run = replace(run, config=run.config.model_copy(update={"device": device}))
    with PlainDisplay() as display:
        return 0 if run.attempt(display) else 1


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
