"""Compares the speed of lora-a2 with other stacks, and prints the figures last.

    python benchmarks/run.py --data ../shared/data/banking77                    # everything, as `make bench`
    python benchmarks/run.py --data ... --only S_cpu,U_cpu --pairs 5 --clients 4
    python benchmarks/run.py --data ... --only S_gpu --device cuda --clients 30

Exits with 1 if a figure is worse than its floor in benchmarks/floors.json, which --accept sets from this run, or if a peer does not
compute the same as ours. docs/benchmarks.md says what is measured.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from figures import FIGURES, Floors, line, missing_line
from lora_a2.errors import LoraA2Error
from measures import MEASURES, Bench, NotMeasured
from pairs import Measured
from peers.process import PeerError
from records import merge, origin, processor
from setups import GateError
from table import RESULTS
from table import main as write_table

FLOORS = Path(__file__).with_name("floors.json")
USUAL = [name for name in FIGURES if name not in ("S_p1_bf16", "S_p2_bf16")]


def main() -> int:
    """Measures, records and prints; returns the exit code."""
    options = _options()
    bench = Bench(
        options.data,
        options.tokenizer,
        options.clients,
        options.roberta_clients,
        options.examples,
        options.pairs,
        options.device,
        options.clients_per_pass,
        options.e2e,
    )
    measured: dict[str, Measured] = {}
    missing: dict[str, str] = {}
    failed = False
    for name in options.only:
        print(f"{name}: {FIGURES[name].what}", file=sys.stderr, flush=True)
        try:
            measured[name] = MEASURES[name](bench)
        except (NotMeasured, PeerError, GateError) as error:
            missing[name] = str(error)
            failed |= not isinstance(error, NotMeasured)
        else:
            _record(options, name, measured[name])
    values = {name: found.values for name, found in measured.items()}
    floors = Floors.read(FLOORS)
    complaints = floors.complaints(values)
    if options.accept:
        floors.accepted(values, processor()).write(FLOORS)
    _say(options.only, values, missing, [] if options.accept else complaints)
    return 1 if failed or (complaints and not options.accept) else 0


def _record(options: argparse.Namespace, name: str, found: Measured) -> None:
    """Writes a figure at once, so that an interrupted run keeps it."""
    if options.scratch:
        return
    accelerator = torch.cuda.get_device_name() if options.device.startswith("cuda") else None
    merge(RESULTS, {name: found}, origin(vars(options), accelerator))
    write_table()


def _say(only: list[str], values: dict[str, list[float]], missing: dict[str, str], complaints: list[str]) -> None:
    for text in complaints:
        print(text, file=sys.stderr)
    sys.stderr.flush()
    for name in only:
        figure = FIGURES[name]
        print(line(figure, values[name]) if name in values else missing_line(figure, missing[name]))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of BANKING77")
    parser.add_argument("--tokenizer", type=Path, help="folder of RoBERTa-base's tokenizer; default: beside the data")
    parser.add_argument("--only", type=_names, default=USUAL, help=f"figures, comma-separated, of {', '.join(FIGURES)}")
    parser.add_argument("--e2e", type=Path, help="folder of E2E, for models that write; default: beside the data")
    parser.add_argument(
        "--clients", type=int, default=4, help="how many of the 30 clients take part in the timed rounds"
    )
    parser.add_argument("--roberta-clients", type=int, default=2, help="the same for RoBERTa-base's shape on the CPU")
    parser.add_argument(
        "--examples", type=int, help="most examples of each client; such a run is a trial and is not recorded"
    )
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--device", default="cpu", help='"cuda" measures S_gpu too')
    parser.add_argument(
        "--clients-per-pass", type=int, default=1, help="clients in one forward and backward, on the GPU"
    )
    parser.add_argument("--accept", action="store_true", help="make this run's figures the floors")
    parser.add_argument("--scratch", action="store_true", help="record nothing")
    options = parser.parse_args()
    options.tokenizer = options.tokenizer or options.data / ".." / ".." / "tokenizers" / "roberta-base"
    options.e2e = options.e2e or options.data / ".." / "e2e_nlg"
    for name in ("clients", "roberta_clients", "pairs", "clients_per_pass"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1.")
    options.scratch |= options.examples is not None
    if options.accept and options.scratch:
        parser.error("--accept needs a recorded run: leave out --examples and --scratch.")
    return options


def _names(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in FIGURES:
            raise argparse.ArgumentTypeError(f"there is no figure {name!r}; choose from {', '.join(FIGURES)}")
    return names


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LoraA2Error as error:
        print(error, file=sys.stderr)
        sys.exit(2)
