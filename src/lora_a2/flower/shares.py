"""The shares of a data set, one folder for each node. Nodes of a real deployment have their data from the start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lora_a2.config.opening import open_data
from lora_a2.config.run import RunConfig
from lora_a2.data.split import split_data
from lora_a2.data.written import Part, Sample, Samples
from lora_a2.system.files import write_atomic

TRAIN, TEST = "train.jsonl", "test.jsonl"


def write_shares(config: RunConfig, folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Splits the data of a run as the simulator does; client k's share is TRAIN and TEST in `folder`/node-k.

    A share without test examples has no TEST. Returns the names of the labels, and what the user should know
    of the data.

    Raises:
        DataError, ConfigError: the data cannot be read, or cannot be split in this way.
    """
    data = open_data(config)
    split = split_data(
        data,
        partitioner=config.partitioner,
        num_clients=config.num_clients,
        alpha=config.alpha,
        min_client_examples=config.min_client_examples,
        seed=config.seed,
    )
    for node, (train, test) in enumerate(zip(split.train, split.test, strict=True)):
        share = share_of(folder, node)
        share.mkdir(parents=True)
        _write(share / TRAIN, data.train.take(train), data.label_names)
        if len(test):
            _write(share / TEST, data.test.take(test), data.label_names)
    return data.label_names, data.notes


def share_of(folder: Path, node: int) -> Path:
    """The folder of a node's share."""
    return folder / f"node-{node}"


def _write(path: Path, examples: Part, label_names: tuple[str, ...]) -> None:
    if isinstance(examples, Samples):
        rows = [_row(sample) for sample in examples.samples]
    else:
        pairs = zip(examples.texts, examples.labels, strict=True)
        rows = [{"text": text, "label": label_names[label]} for text, label in pairs]
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def _row(sample: Sample) -> dict[str, Any]:
    """A row that reads back as the sample."""
    if sample.text is not None:
        return {"text": sample.text}
    messages = [{"role": turn.role, "content": turn.content} for turn in sample.turns]
    return {"messages": messages, **({"references": list(sample.references)} if sample.references else {})}
