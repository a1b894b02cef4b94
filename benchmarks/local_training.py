"""How fast local training is, beside the stack that everyone uses, on this machine's CPU.

    .venv/bin/python benchmarks/local_training.py --data ../shared/data/banking77

Workload: BANKING77 over 30 clients, Dirichlet 0.1, batch 32, FL + LoRA of rank 8 on all linear modules of MiniLM, one epoch of
the first clients, the same token ids in the same order everywhere, evaluation excluded. Runs alternate in one process; the
figures are medians of the pairs' ratios, with the smallest and the largest. An equality gate comes first: in float32, ours
and the peer's adapters agree after an epoch, or nothing is timed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from peers import PeftPeer

import lora_a2
from lora_a2.randomness import generator
from lora_a2.rounds import client_round, dispatch
from lora_a2.simulation import Client, Plan
from lora_a2.training.local import Task, epoch_orders, train_cohort
from lora_a2.training.pool import Pool
from lora_a2.types import Adapter

RATE = 2e-3
GOALS = {"S_cpu": (10, ">="), "S_cpu_bf16": (5, ">="), "U_cpu": (0.6, ">="), "R": (1.0, "<="), "overhead": (0.03, "<=")}


def main() -> None:
    """Runs the gate, then the pairs, and prints each figure last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of BANKING77")
    parser.add_argument("--clients", type=int, default=4, help="clients timed in a run")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/local_training.json"))
    options = parser.parse_args()
    torch.set_num_threads(torch.get_num_threads())
    data = lora_a2.load_data(options.data)
    model = lora_a2.load_model(labels=data.label_names)
    clients = lora_a2.make_clients(data, model, num_clients=30, alpha=0.1)[: options.clients]
    tokens = sum(len(s) for c in clients for s in c.train.input_ids)
    names = [m.name for m in model.layout.modules]
    head = {k: v.clone() for k, v in model.classifier.head.items()}
    peer = PeftPeer(names, 8, 16.0, head)
    plan = _plan(model, clients, "fl-lora", epochs=1, rank_budget=8)
    print(f"gate: largest relative difference {_gate(data, clients, peer):.1e} (limit 1e-3)")

    def ours() -> None:
        _round(model, clients, plan)

    def theirs(bf16: bool) -> Callable[[], None]:
        def run() -> None:
            for client in clients:
                peer.load(plan.federation.initial)
                peer.train(client.train, _orders(plan, client, 1), 32, RATE, bf16)

        return run

    results = {
        "S_cpu": _ratios(theirs(False), ours, options.pairs),
        "S_cpu_bf16": _ratios(theirs(True), ours, options.pairs),
        "U_cpu": [_floor_seconds(model, tokens) / _timed(ours) for _ in range(options.pairs)],
        "R": _ratios(
            lambda: _round(model, clients, _plan(model, clients, "lora-a2", epochs=5, rank_budget=2)),
            lambda: _round(model, clients, _plan(model, clients, "fl-lora", epochs=5, rank_budget=8)),
            max(1, options.pairs // 2),
        ),
        "overhead": [r - 1 for r in _ratios(ours, lambda: _bare(model, clients, plan), options.pairs)],
    }
    rate = tokens / statistics.median(_timed(ours) for _ in range(3))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    record = {"tokens": tokens, "tokens_per_second": rate, "torch": torch.__version__, "ratios": results}
    options.output.write_text(json.dumps(record, indent=2) + "\n")
    print(f"tokens per second, ours: {rate:.0f}")
    for name, ratios in results.items():
        goal, way = GOALS[name]
        sign = "≥" if way == ">=" else "≤"
        print(f"{name} {statistics.median(ratios):.3g} (goal {sign} {goal}) [{min(ratios):.3g} … {max(ratios):.3g}]")


def _plan(model: lora_a2.Model, clients: tuple[Client, ...], method: str, *, epochs: int, rank_budget: int) -> Plan:
    return lora_a2.make_plan(
        model,
        clients,
        method,
        local_epochs=epochs,
        batch_size=32,
        learning_rate=RATE,
        rank_budget=rank_budget,
    )


def _orders(plan: Plan, client: Client, epochs: int) -> tuple[np.ndarray, ...]:
    return epoch_orders(len(client.train), epochs, generator(plan.federation.seed, "train", 1, client.id))


def _round(model: lora_a2.Model, clients: tuple[Client, ...], plan: Plan) -> None:
    """One round's client halves, over the codec, clients side by side as in a run."""
    state = plan.start()
    work = [(p, c.train, dispatch(plan.federation, state, p)) for p, c in zip(plan.profiles, clients, strict=True)]
    with Pool(model.classifier, 2) as pool:
        list(pool.map(lambda c, w: client_round(plan.federation, c, [w[:2]], [w[2]]), work))


def _bare(model: lora_a2.Model, clients: tuple[Client, ...], plan: Plan) -> None:
    """The same training without messages, profiles or masks."""
    federation = plan.federation
    tasks = [Task(federation.initial, c.train, None, _orders(plan, c, federation.local_epochs)) for c in clients]
    with Pool(model.classifier, 2) as pool:
        list(pool.map(lambda c, t: train_cohort(c, [t], frozenset({"A", "B"}), federation.training), tasks))


def _gate(data: object, clients: tuple[Client, ...], peer: PeftPeer) -> float:
    model = lora_a2.load_model(labels=data.label_names, dtype="float32")
    plan = _plan(model, clients, "fl-lora", epochs=1, rank_budget=8)
    client = clients[0]
    orders = _orders(plan, client, 1)
    (ours,) = train_cohort(
        model.classifier,
        [Task(plan.federation.initial, client.train, None, orders)],
        frozenset({"A", "B"}),
        plan.federation.training,
    )
    peer.load(plan.federation.initial)
    peer.train(client.train, orders, 32, RATE, bf16=False)
    worst = _difference(ours.adapter, peer.read(16.0))
    if worst > 1e-3:
        raise SystemExit(f"The adapters differ by {worst:.1e}: nothing is timed.")
    return worst


def _difference(ours: Adapter, theirs: Adapter) -> float:
    return max(
        float(np.linalg.norm(f.get(x) - theirs.factors[name].get(x)) / np.linalg.norm(theirs.factors[name].get(x)))
        for name, f in ours.factors.items()
        for x in ("A", "B")
    )


def _timed(run: Callable[[], None]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _ratios(first: Callable[[], None], second: Callable[[], None], pairs: int) -> list[float]:
    """Seconds of `first` over seconds of `second`, in alternating order; one warm-up each."""
    first(), second()
    ratios = []
    for pair in range(pairs):
        if pair % 2:
            below, above = _timed(second), _timed(first)
        else:
            above, below = _timed(first), _timed(second)
        ratios.append(above / below)
    return ratios


def _floor_seconds(model: lora_a2.Model, tokens: int) -> float:
    """4·P·T at the rate of a bfloat16 product of the model's own shape, both cores, measured now."""
    x, w = torch.randn(576, 384, dtype=torch.bfloat16), torch.randn(1536, 384, dtype=torch.bfloat16)
    times = [_timed(lambda: torch.nn.functional.linear(x, w)) for _ in range(200)]
    rate = 2 * 576 * 384 * 1536 / statistics.median(times)
    weights = sum(m.d_in * m.d_out for m in model.layout.modules)
    return 4 * weights * tokens / rate


if __name__ == "__main__":
    main()
