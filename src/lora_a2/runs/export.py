"""A finished run's model as a folder that the ecosystem takes as it is: with a model card, and where wanted on a hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lora_a2.config.run import RunConfig
from lora_a2.core.types import ServerState
from lora_a2.errors import ConfigError, RunError
from lora_a2.federation.records import RoundRecord
from lora_a2.model.concatenated import concatenated
from lora_a2.model.merged import save_merged
from lora_a2.model.pretrained import Model
from lora_a2.model.writer_io import save_merged_writer
from lora_a2.runs.configured import config_of
from lora_a2.runs.directory import RunDirectory
from lora_a2.runs.jobs import save_result
from lora_a2.runs.unfinished import model_of, state_of
from lora_a2.settings.task import CAUSAL_LM
from lora_a2.system.files import seal, write_atomic
from lora_a2.tasks.registry import measured

CARD = "README.md"


def export(
    run_dir: str | Path,
    folder: str | Path,
    *,
    merged: bool = False,
    push_to_hub: str | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """Writes a finished run's model to a new folder: an adapter in PEFT's format, or with `merged` a plain Transformers folder.

    A model card with data, method, metrics and bytes is in it. `push_to_hub`: the repository there that the folder is uploaded to.

    Raises:
        ConfigError: something is in the folder already, or an adapter is wanted of a method that moves base weights, and no small
            one is the whole result.
        RunError: the run is not finished or damaged, or the model is another one by now; or the hub does not take the folder.
    """
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} is there already and not empty: choose a new folder.")
    run = RunDirectory.open(Path(run_dir))
    run.require_finished()
    config = config_of(run, trust_remote_code)
    model = model_of(run, config)
    state = state_of(run, model)
    if state.base and not merged:
        state = _as_adapter(state, config.method)
    _save(target, model, state, merged)
    write_atomic(target / CARD, model_card(config, model, run.load_records(), run.kept_round(), merged).encode())
    seal(target)
    if push_to_hub is not None:
        _push(target, push_to_hub)
    return target


def _as_adapter(state: ServerState, method: str) -> ServerState:
    """The same with all that was learnt in the adapter, and the base weights where they were.

    Raises:
        ConfigError: no small adapter is the whole result.
    """
    found = concatenated(state.adapter, state.base)
    if found is None:
        raise ConfigError(
            f"merged: {method} moves base weights, and no small adapter is the whole result; give --merged."
        )
    return replace(state, adapter=found, base_delta={}, base_update={})


def _save(target: Path, model: Model, state: ServerState, merged: bool) -> None:
    if not merged:
        save_result(target, model, state)
    elif model.task.name == CAUSAL_LM:
        save_merged_writer(target, model, state.adapter, state.base)
    else:
        save_merged(target, model, state.adapter, state.base)


def model_card(config: RunConfig, model: Model, records: list[RoundRecord], kept_round: int, merged: bool) -> str:
    """Markdown with the metadata that a hub reads; the metrics are those after `kept_round`."""
    metrics: Mapping[str, Any] = records[kept_round - 1].metrics
    task = measured(metrics)
    up, down = (sum(getattr(r, name) for r in records) for name in ("uploaded_bytes", "downloaded_bytes"))
    pipeline = "text-generation" if model.task.name == CAUSAL_LM else "text-classification"
    head = {
        "base_model": model.name,
        "library_name": "transformers" if merged else "peft",
        "pipeline_tag": pipeline,
        "tags": ["lora", "federated-learning", "lora-a2", config.method],
    }
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items()]
    rows = [
        ("Base model", model.name),
        ("Data", f"{Path(config.data).name}, {config.num_clients} clients, split {config.partitioner}"),
        ("Method", f"{config.method}, rank {config.r}, {len(records)} server rounds, seed {config.seed}"),
        ("Sent", f"{up:,} bytes up, {down:,} bytes down"),
    ]
    if task is not None:
        numbers = {name: value for name, value in metrics.items() if isinstance(value, float)}
        rows += [
            (name.replace("_", " ").capitalize(), task.show_metric(name, value))
            for name, value in numbers.items()
            if not name.startswith("client_")
        ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return (
        "---\n" + "\n".join(lines) + "\n---\n\n# Fine-tuned with lora-a2\n\n"
        "Clients fine-tuned this model together without sharing their texts. The metrics are of the run's test data.\n\n"
        f"| | |\n| --- | --- |\n{table}\n"
    )


def _push(folder: Path, name: str) -> None:
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(name, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder)
    except Exception as error:  # dozens of types, all of them: not uploaded
        reason = " ".join(str(error).split())[:200]
        raise RunError(f"{folder} is written, but not on the hub as {name}: {reason}") from error
