"""A peer's process: runs a round for every line on standard input, and answers with its seconds.

    python -m peers.worker peft_loop FOLDER float32

For the line "result" it writes the last round's arrays to FOLDER/result-NAME.npz. Answers are lines that begin with `MARK`, since
the peers' libraries print lines too.
"""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path

import numpy as np

from peers import Job, Peer

MARK = "@peer "


def main(name: str, folder: str, dtype: str) -> None:
    """Serves until standard input ends."""
    job = Job(Path(folder), bfloat16=dtype == "bfloat16")

    def answer(peer: Peer) -> None:
        _say("ready")
        for line in sys.stdin:
            if line.strip() == "result":
                path = job.folder / f"result-{name}.npz"
                np.savez(path, **peer.result())
                _say(str(path))
            else:
                began = time.perf_counter()
                peer.round()
                _say(str(time.perf_counter() - began))

    importlib.import_module(f"peers.{name}").serve(job, answer)


def _say(text: str) -> None:
    print(f"{MARK}{text}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
