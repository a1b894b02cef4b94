"""Peak memory of one simulated round of N small clients, in MiB, printed as the only output; run it in its own process.

    python benchmarks/memory.py --data ../shared/data/banking77 --clients 1000

All N clients take part. FL+LoRA at rank 8 uploads 1.3 MB for each on MiniLM-L6, so the figure shows if a simulator keeps the cohort's
replies, adapters or optimizers. Every client has four different sentences, so that the various batch shapes count too: a library may
keep a kernel for each. The peak is counted after the model and the data are loaded, and includes the memory that workers do not
share with this process.
"""

from __future__ import annotations

import argparse
from contextlib import closing
from pathlib import Path

import numpy as np

import lora_a2
from lora_a2.engine.pool import peak_memory
from lora_a2.engine.work import TokenizedExamples
from lora_a2.federation.population import Client
from lora_a2.simulation import simulate
from workload import plan_of

SENTENCES = 4


def main() -> None:
    """Loads, resets the peak, runs a round, prints the peak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of BANKING77")
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--method", default="fl-lora")
    options = parser.parse_args()
    data = lora_a2.load_data(str(options.data))
    model = lora_a2.load_model(labels=data.label_names, device="cpu")
    sentences = model.tokenize(data.train.texts[: options.clients * SENTENCES])
    clients = [small_client(k, sentences, data.train.labels) for k in range(options.clients)]
    plan = plan_of(model, clients, options.method)
    Path("/proc/self/clear_refs").write_text("5")  # resets the kernel's peak to the present memory
    with closing(simulate(model, clients, plan)) as run:
        next(run)
    print(f"{peak_memory() / 2**20:.1f}")


def small_client(k: int, sentences: tuple[np.ndarray, ...], labels: np.ndarray) -> Client:
    """A client with four training sentences and no test sentences."""
    rows = np.arange(SENTENCES) + k * SENTENCES
    train = TokenizedExamples(sentences, labels[: len(sentences)]).take(rows)
    return Client(k, f"client {k}", train, TokenizedExamples((), np.zeros(0, np.int64)))


if __name__ == "__main__":
    main()
