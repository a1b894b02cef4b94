"""Where the time of a training step goes, by kind of work.

    python benchmarks/profile_step.py --data ../shared/data/banking77
    python benchmarks/profile_step.py --data ... --method lora-a2 --epochs 2 --steps 20

One client's FL+LoRA training on one thread, batch 32, MiniLM-L6. The shares come from a profiled run; the milliseconds are these
shares of a step without the profiler. "dispatch" is the time outside kernels: Python, views, autograd, allocation, packing.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import lora_a2
from lora_a2.engine.local import train_cohort
from lora_a2.engine.work import ClientTask
from workload import BATCH, RANK, load_clients, plan_of

GROUPS = ("base GEMMs", "LoRA products", "attention", "element-wise", "gathers and copies", "dispatch")
PRODUCTS = {
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "addmm_",
    "baddbmm_",
    "_addmm_activation",
    "mkldnn_linear",
    "linear",
    "matmul",
}
COPIES = {
    "copy_",
    "index_select",
    "index",
    "index_copy_",
    "_index_put_impl_",
    "index_put_",
    "cat",
    "gather",
    "scatter_",
}
COPIES |= {"index_fill_", "fill_", "zero_", "clone", "contiguous", "_to_copy", "embedding", "repeat"}
VIEWS = {
    "view",
    "reshape",
    "transpose",
    "t",
    "as_strided",
    "slice",
    "select",
    "expand",
    "unsqueeze",
    "squeeze",
    "detach",
    "empty",
}
VIEWS |= {
    "empty_like",
    "empty_strided",
    "split",
    "narrow",
    "permute",
    "to",
    "_unsafe_view",
    "resize_",
    "result_type",
    "detach_",
}
SKINNY = 64
"""A product outside attention with a side of at most this length is LoRA's."""


def kind(name: str, ancestors: Sequence[str], shapes: Sequence[Sequence[int]]) -> str:
    """The group of a profiled operation, from its name, its enclosing operations, and its operands' shapes."""
    space, _, operation = name.rpartition("::")
    if operation in VIEWS or name.startswith("autograd::"):
        return "dispatch"
    if "softmax" in operation or any(
        "ttention" in n for n in (name, *ancestors)
    ):  # a compiled kernel is its function's own time
        return "attention"
    if "Tabulated" in name:
        return "element-wise"
    if not space:  # Python and autograd's own functions; LoRA's function runs its compiled kernel
        return "LoRA products" if "Lora" in name else "dispatch"
    if operation in PRODUCTS or "linear" in operation:
        return "LoRA products" if _skinny(shapes) else "base GEMMs"
    if "lora" in operation.lower():
        return "LoRA products"
    return "gathers and copies" if operation in COPIES else "element-wise"


def _skinny(shapes: Sequence[Sequence[int]]) -> bool:
    sides = [side for shape in shapes for side in (shape[-2:] if len(shape) >= 2 else [])]
    return bool(sides) and min(sides) <= SKINNY


def shares(events: Iterable[Any], seconds: float) -> dict[str, float]:
    """Group → share of a run that took `seconds`; dispatch is the rest."""
    spent: Counter[str] = Counter()
    for event in events:
        if event.device_type != torch.autograd.DeviceType.CPU:
            continue
        ancestors, parent = [], event.cpu_parent
        while parent is not None:
            ancestors.append(parent.name)
            parent = parent.cpu_parent
        spent[kind(event.name, ancestors, event.input_shapes or [])] += event.self_cpu_time_total / 1e6
    spent["dispatch"] = max(0.0, seconds - sum(v for group, v in spent.items() if group != "dispatch"))
    whole = sum(spent.values())
    return {group: spent[group] / whole for group in GROUPS}


def main() -> None:
    """Trains three times: to warm up, for the time, and for the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of BANKING77")
    parser.add_argument("--method", default="fl-lora")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10, help="steps of an epoch")
    parser.add_argument("--batch", type=int, default=BATCH, help="sentences of a batch")
    parser.add_argument("--round", type=int, default=1, help="server round, which determines the trained factors")
    parser.add_argument("--rows", type=int, default=12, help="number of single operations to list")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = lora_a2.load_data(str(options.data))
    model = lora_a2.load_model(labels=data.label_names, device="cpu")
    (client,) = load_clients(data, model, 1, options.steps * options.batch)
    federation = plan_of(model, (client,), options.method, epochs=options.epochs, budget=RANK).federation
    orders = tuple(np.arange(len(client.train)) for _ in range(options.epochs))
    task = ClientTask(federation.initial, client.train, None, orders)
    settings = replace(federation.training, batch_size=options.batch)
    steps = options.epochs * -(-len(client.train) // options.batch)

    def train() -> float:
        began = time.perf_counter()
        train_cohort(model.network, [task], federation.method.schedule(options.round), settings)
        return time.perf_counter() - began

    train()
    plain = min(train() for _ in range(3)) / steps
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        profiled = train()
    tokens = sum(len(s) for s in client.train.input_ids) * options.epochs / steps
    print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=options.rows, max_name_column_width=40))
    print(
        f"A step of {tokens:.0f} tokens takes {1e3 * plain:.1f} ms ({1e3 * profiled / steps:.1f} ms under the profiler):"
    )
    for group, share in shares(profile.events(), profiled).items():
        print(f"  {group:<20} {100 * share:5.1f} %  {1e3 * plain * share:6.2f} ms")


if __name__ == "__main__":
    main()
