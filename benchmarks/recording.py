"""The cost of recording for analysis: its share of the time of rounds.

    lora-a2 run --data BANKING77_FOLDER --num-server-rounds 4 --output-dir runs/recorded
    python benchmarks/recording.py runs/recorded

Prints one line for each run: median seconds of a round and of the recording, and their ratio.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path


def main(folders: list[str]) -> None:
    for folder in folders:
        lines = [json.loads(line) for line in (Path(folder) / "rounds.jsonl").read_text().splitlines()]
        recording = statistics.median(line["seconds"]["analysis"] for line in lines)
        rounds = statistics.median(sum(line["seconds"].values()) for line in lines)
        print(f"{folder}: round {rounds:.2f} s, recording {recording:.3f} s, {100 * recording / rounds:.2f} %")


if __name__ == "__main__":
    main(sys.argv[1:])
