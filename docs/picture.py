"""Draws docs/run.svg: the live display at the end of a run, and the summary, from the run's own record.

.venv/bin/lora-a2 run --output-dir runs/picture --json > runs/picture.json
.venv/bin/python docs/picture.py runs/picture.json docs/run.svg
"""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

from rich.console import Console

from lora_a2 import RoundRecord, RunSummary
from lora_a2.display.live import Display, print_summary, render
from lora_a2.simulation import RunStart


def main(result: str, target: str) -> None:
    """Replays the rounds of a finished run into a recording console."""
    summary = RunSummary(**json.loads(Path(result).read_text()))
    records = [
        RoundRecord.from_json(json.loads(line))
        for line in (Path(summary.output_dir) / "rounds.jsonl").read_text().splitlines()
    ]
    display = Display()
    display.started(
        RunStart(
            output_dir=summary.output_dir,
            num_clients=summary.num_clients,
            clients_per_pass=len(records[0].clients),
            first_round=1,
            num_server_rounds=summary.server_rounds,
            full_finetuning_bytes_per_round=4 * summary.full_finetuning_parameters // summary.server_rounds,
            method=summary.method,
            model="all-MiniLM-L6-v2",
            data="helpdesk",
        )
    )
    for record in records:
        display.round_done(record)
        display.clients_done(record.server_round, len(record.clients), len(record.clients))
    assert display.progress is not None
    console = Console(record=True, width=96, force_terminal=True, color_system="truecolor", file=io.StringIO())
    console.print("$ make run", style="bold")
    console.print(render(display.progress))
    console.print()
    print_summary(summary, console)
    svg = console.export_svg(title="lora-a2 run")
    Path(target).write_text(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.S))  # no font is fetched from elsewhere


if __name__ == "__main__":
    main(*sys.argv[1:])
