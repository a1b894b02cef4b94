"""Fine-tuning a model that writes, beside a Transformers + PEFT loop with dynamic padding: one measurement, printed as JSON.

    python benchmarks/writing.py ours bfloat16 --model FOLDER --data E2E_FOLDER

`--data` holds E2E's train.jsonl.gz (columns input, references). Completions are learnt; batch 8, rank 8, all linear layers, one epoch,
four clients of ours one after the other for the peer. `run.py` starts it, each measurement in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import lora_a2
from lora_a2.data.writing import load_samples
from lora_a2.engine.pool import peak_memory
from lora_a2.federation.population import Client

BATCH, RANK, CLIENTS, RATE = 8, 8, 4, 1e-3
GENERATED = 100


def clients(model: lora_a2.Model, data: str, examples: int) -> tuple[Client, ...]:
    """The first examples, shared out in turn."""
    samples = load_samples(str(Path(data) / "train.jsonl.gz"), prompt_column="input", completion_column="references")
    encoded = model.encode(samples.take(np.arange(examples))).examples
    shares = [encoded.take(np.arange(k, examples, CLIENTS)) for k in range(CLIENTS)]
    return tuple(Client(k, f"client {k}", share, share.take(np.arange(1))) for k, share in enumerate(shares))


def ours(model: str, data: str, dtype: str, examples: int, workers: int) -> dict[str, Any]:
    """Seconds of a round's local training, tokens, and the most memory held."""
    loaded = lora_a2.load_model(model, task="causal-lm", dtype=dtype, max_length=256, device="cpu")
    members = clients(loaded, data, examples)
    options: dict[str, Any] = {
        "r": RANK,
        "lora_alpha": RANK,
        "batch_size": BATCH,
        "local_epochs": 1,
        "learning_rate": RATE,
    }
    plan = lora_a2.make_plan(loaded, members, "fl-lora", num_server_rounds=2, num_workers=workers, **options)
    records = [record for _, record in lora_a2.simulate(loaded, members, plan)]
    tokens = sum(len(ids) for c in members for ids in c.train.input_ids)
    learnt = sum(int((own[1:] != -100).sum()) for c in members for own in c.train.labels)
    shapes = [(m.d_out, m.d_in) for m in loaded.layout.modules]
    words = loaded.network.objective._head.weight.shape  # type: ignore[attr-defined]
    return {
        "seconds": records[1].seconds["train"],
        "tokens": tokens,
        "learnt": learnt,
        "examples": examples,
        "loss": records[0].train_loss,
        "memory": peak_memory(),
        "shapes": shapes,
        "head": [tuple(words)],
    }


def peer(model: str, data: str, dtype: str, examples: int) -> dict[str, Any]:
    """The same by Transformers and PEFT, on all cores."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    loaded = lora_a2.load_model(model, task="causal-lm", dtype="float32", max_length=256, device="cpu")
    members = clients(loaded, data, examples)
    padding = int(loaded.tokenizer.pad_token_id or 0)
    del loaded
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    network = get_peft_model(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), config).train()
    initial = {name: p.detach().clone() for name, p in network.named_parameters() if p.requires_grad}
    began, loss_sum, learnt = 0.0, 0.0, 0
    for turn in range(2):  # the first warms up
        began = time.perf_counter()
        loss_sum, learnt = 0.0, 0
        for client in members:
            network.load_state_dict(initial, strict=False)
            optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=RATE)
            order = np.random.default_rng(turn).permutation(len(client.train))
            for start in range(0, len(order), BATCH):
                batch, count = padded(client, order[start : start + BATCH], padding)
                with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
                    loss = network(**batch, use_cache=False).loss
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                loss_sum, learnt = loss_sum + float(loss.detach()) * count, learnt + count
    return {"seconds": time.perf_counter() - began, "loss": loss_sum / learnt, "memory": peak_memory()}


def padded(client: Client, rows: np.ndarray, padding: int) -> tuple[dict[str, torch.Tensor], int]:
    """A padded batch, and its number of learnt tokens."""
    part = client.train.take(rows)
    longest = max(map(len, part.input_ids))
    ids = torch.full((len(rows), longest), padding)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for i, (own, target) in enumerate(zip(part.input_ids, part.labels, strict=True)):
        ids[i, : len(own)], mask[i, : len(own)] = torch.from_numpy(own), 1
        labels[i, : len(own)] = torch.from_numpy(target)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}, int((labels != -100).sum())


def generation(model: str, who: str) -> dict[str, Any]:
    """Seconds for an answer of 100 tokens."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lora_a2.tasks.causal_lm.generation import generate_texts
    from lora_a2.tasks.causal_lm.sampling_options import SamplingOptions

    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    network.generation_config.eos_token_id = network.config.eos_token_id = None
    tokenizer.eos_token = None
    tokenizer.chat_template = None
    prompt = np.arange(100, 120)

    def once() -> None:
        if who == "ours":
            generate_texts(network, tokenizer, [prompt], SamplingOptions(max_new_tokens=GENERATED))
        else:
            ids = torch.from_numpy(prompt)[None]
            network.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=GENERATED, do_sample=False, pad_token_id=0
            )

    once()
    began = time.perf_counter()
    once()
    return {"seconds": time.perf_counter() - began}


def main() -> None:
    """Prints one measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("ours", "peer", "generate"))
    parser.add_argument("how", help="a number type, or for generate: ours or plain")
    parser.add_argument("--workers", type=int, default=2, help="processes of ours")
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--examples", type=int, default=64)
    given = parser.parse_args()
    if given.what == "generate":
        found = generation(given.model, given.how)
    elif given.what == "ours":
        found = ours(given.model, given.data, given.how, given.examples, given.workers)
    else:
        found = peer(given.model, given.data, given.how, given.examples)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
