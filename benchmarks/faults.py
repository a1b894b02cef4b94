"""Whether runs survive faults of deployments; each fault is injected into real processes, several times.

    .venv/bin/python benchmarks/faults.py --runs 20

The faults are those of tests/faults.py. A run survives if it ends with all its rounds and an adapter, and passes the fault's
own checks. The output has [survived, done] for each; the same command continues from there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
import traceback
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from faults import FAULTS, Subject, subject


def main() -> None:
    """Injects the faults, prints a line for each, and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20, help="how often to inject each fault")
    parser.add_argument("--only", choices=[fault.__name__ for fault in FAULTS], action="append", help="may be repeated")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/faults.json"))
    options = parser.parse_args()
    chosen = [fault for fault in FAULTS if not options.only or fault.__name__ in options.only]
    found: dict[str, list[int]] = json.loads(options.output.read_text()) if options.output.exists() else {}
    with Deployments() as deployments:
        for fault in itertools.chain.from_iterable(itertools.repeat(chosen, options.runs)):
            done = found.setdefault(fault.__name__, [0, 0])
            if done[1] >= options.runs:
                continue
            began = time.monotonic()
            done[1] += 1
            try:
                fault(deployments.current())
                done[0] += 1
            except Exception:
                traceback.print_exc()
                deployments.renew()
            print(f"{fault.__name__} {done[0]}/{done[1]} ({time.monotonic() - began:.0f} s)", flush=True)
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(json.dumps(found, indent=2) + "\n")
    for fault in chosen:
        survived, runs = found[fault.__name__]
        print(f"{fault.__name__} {survived} of {runs} (goal {runs})")


class Deployments:
    """One deployment for all faults; a new one after a fault that it does not survive."""

    def __init__(self) -> None:
        self._stack, self._current = ExitStack(), None

    def __enter__(self) -> Deployments:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def current(self) -> Subject:
        """The deployment, started on first use."""
        if self._current is None:
            folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="lora-a2-"))
            self._current = self._stack.enter_context(subject(Path(folder)))
        return self._current

    def renew(self) -> None:
        """Ends the deployment."""
        self._current = None
        self._stack.close()


if __name__ == "__main__":
    main()
