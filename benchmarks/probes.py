"""How well cheaper probes choose the paper's rank slices, and the final accuracy of runs with them.

    .venv/bin/python benchmarks/probes.py --seeds 3
    .venv/bin/python benchmarks/probes.py --data ../shared/data/banking77 --rounds 20 --num-clients 30 --alpha 0.1

In a run with the paper's probe, the other probes also compute every client's masks from the same state, and these are compared
with the paper's: the share of the budget that both choose, and Jaccard's index, mean over the clients of a round. Then there is a
run with each probe and seed; all other options are those of `lora-a2 run`. Random masks would share budget / r. "no data" moves
every value by the same amount, so that only the norms of the other factor's slices and the widths of modules decide.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import lora_a2
from lora_a2.core.types import Factors, Mask
from lora_a2.engine.local import CohortTraining
from lora_a2.federation.loop import Plan
from lora_a2.federation.population import Client
from lora_a2.federation.probes import PROBES, LocalRound, Probe, get_probe
from lora_a2.simulation import simulate


def main() -> None:
    """Runs everything, writes the JSON, and finally prints a line for each probe and seed."""
    options = _options()
    kinds = _kinds(options.batches)
    data = lora_a2.load_data(options.data, max_examples=options.max_examples)
    seeds = []
    for seed in range(options.seeds):
        model = lora_a2.load_model(labels=data.label_names, dtype=options.dtype, seed=seed)
        clients = lora_a2.make_clients(data, model, num_clients=options.num_clients, alpha=options.alpha, seed=seed)
        plan = _plan(options, model, clients, seed)
        overlaps = list(_overlaps(model, clients, plan, kinds))
        runs = {name: _run(model, clients, _with(plan, kinds[name])) for name in kinds}
        seeds.append({"seed": seed, "overlaps": overlaps, "runs": runs})
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps({"options": _plain(options), "seeds": seeds}, indent=2) + "\n")
    for line in table(list(kinds), seeds):
        print(line)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="helpdesk")
    parser.add_argument("--max-examples", type=int, help="for a quick trial")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--batches", default="1,2,4,8", help="of the gradient probe")
    parser.add_argument("--num-clients", type=int, default=10)
    parser.add_argument("--alpha", type=float, default=0.5)
    parser.add_argument("--rank-budget", type=int, default=2)
    parser.add_argument("--local-epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/probes.json"))
    return parser.parse_args()


def _plain(options: argparse.Namespace) -> dict[str, Any]:
    return {key: value for key, value in vars(options).items() if key != "output"}


def _kinds(batches: str) -> dict[str, Probe]:
    """The probes by their name in the table, the paper's first."""
    method = lora_a2.METHODS["lora-a2"]
    gradients = {f"gradient, {n}": get_probe(method, "gradient", int(n)) for n in batches.split(",")}
    return {"epoch": PROBES["epoch"], "reuse": PROBES["reuse"], **gradients, "no data": no_data}


def no_data(work: LocalRound) -> tuple[list[Mask], CohortTraining]:
    """Computes scores as if every trained value had moved by 1."""
    probed = []
    for client in work.training("probe", 1, None).run(0):
        factors = {n: Factors(A=f.A + 1, B=f.B + 1) for n, f in client.adapter.factors.items()}
        probed.append(replace(client, adapter=replace(client.adapter, factors=factors)))
    masks = work.select(probed)
    return masks, work.training("train", work.local_epochs, masks)


def _plan(options: argparse.Namespace, model: lora_a2.Model, clients: Sequence[Client], seed: int) -> Plan:
    return lora_a2.make_plan(
        model,
        clients,
        num_server_rounds=options.rounds,
        local_epochs=options.local_epochs,
        batch_size=options.batch_size,
        rank_budget=options.rank_budget,
        seed=seed,
    )


def _with(plan: Plan, probe: Probe) -> Plan:
    return replace(plan, federation=replace(plan.federation, probe=probe))


@dataclass
class _Recorder:
    """The paper's probe, which also records the masks of the others."""

    kinds: Mapping[str, Probe]
    found: list[dict[str, tuple[float, float]]]

    def __call__(self, work: LocalRound) -> tuple[list[Mask], CohortTraining]:
        masks, training = self.kinds["epoch"](work)
        others = {name: probe(work)[0] for name, probe in self.kinds.items() if name != "epoch"}
        for k, mask in enumerate(masks):
            self.found.append({name: _overlap(mask, other[k]) for name, other in others.items()})
        return masks, training


def _overlap(mask: Mask, other: Mask) -> tuple[float, float]:
    """|∩| / budget and |∩| / |∪|."""
    a, b = (np.concatenate([m[name] for name in mask]) for m in (mask, other))
    both = int((a & b).sum())
    return both / int(a.sum()), both / int((a | b).sum())


def _overlaps(
    model: lora_a2.Model, clients: Sequence[Client], plan: Plan, kinds: Mapping[str, Probe]
) -> Iterator[dict[str, Any]]:
    """The mean share of the budget and Jaccard's index, for each round and probe."""
    recorder = _Recorder(kinds, [])
    # One worker, in this process: what forked workers record would be lost.
    plan = replace(_with(plan, recorder), eval_every=plan.num_server_rounds, num_workers=1)
    for _, record in simulate(model, clients, plan):
        means = {name: np.mean([f[name] for f in recorder.found], 0).tolist() for name in recorder.found[0]}
        yield {"server_round": record.server_round, "trainable": record.trainable, "overlap": means}
        recorder.found.clear()


def _run(model: lora_a2.Model, clients: Sequence[Client], plan: Plan) -> dict[str, Any]:
    began = time.perf_counter()
    records = [record for _, record in simulate(model, clients, plan)]
    return {
        "accuracy": records[-1].metrics["accuracy"],
        "accuracies": [r.metrics["accuracy"] for r in records],
        "seconds": time.perf_counter() - began,
        "training_seconds": sum(r.seconds["train"] for r in records),
    }


def table(kinds: Sequence[str], seeds: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line for each probe: overlap with the paper's in B and A rounds, accuracies, training time relative to the paper's."""
    yield "| probe | budget shared, B rounds | A rounds | Jaccard, B rounds | A rounds | accuracy | training time |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for name in kinds:
        cells = [name]
        for which in (0, 1):
            for factor in ("B", "A"):
                rounds = [r for s in seeds for r in s["overlaps"] if r["trainable"] == [factor]]
                shares = [r["overlap"][name][which] for r in rounds if name in r["overlap"]]
                cells.append(f"{statistics.mean(shares):.2f}" if shares else "")
        accuracies = [s["runs"][name]["accuracy"] for s in seeds]
        cells.append(f"{100 * statistics.mean(accuracies):.1f} ({', '.join(f'{100 * a:.1f}' for a in accuracies)})")
        ratios = [s["runs"][name]["training_seconds"] / s["runs"]["epoch"]["training_seconds"] for s in seeds]
        cells.append(f"{statistics.median(ratios):.2f}")
        yield f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
