"""`lora-a2 cost`"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_a2.commands.common import config_option, examples, json_option, print_json
from lora_a2.commands.options import GroupedCommand, field_options
from lora_a2.federation.options import MethodOptions

if TYPE_CHECKING:
    from lora_a2.config.run import RunConfig
    from lora_a2.federation.cost import Cost

_FIELDS = (
    "task",
    "model",
    "target_modules",
    *(name for name in MethodOptions.model_fields if name != "lora_alpha"),
    "wire_dtype",
    "num_clients",
    "num_server_rounds",
    "fraction_train",
)


@click.command(
    "cost",
    cls=GroupedCommand,
    epilog=examples(
        "lora-a2 cost --model roberta-base --rank-budget 1 --num-clients 30 --num-server-rounds 50",
        "lora-a2 cost --model roberta-base --method fl-lora --r 8 --num-clients 30 --num-server-rounds 50",
        "lora-a2 cost --model Mistral-7B-v0.3 --method fl-lora -r 32 --target-modules q_proj,v_proj --fraction-train 0.1",
        "lora-a2 cost --config study.toml --json",
    ),
)
@config_option
@json_option
@field_options(_FIELDS)
def command(config_file: Path | None, as_json: bool, **flags: Any) -> None:
    """Tell what a run will send, without running it: parameters and bytes, up and down.

    Needs the model's configuration only, no weights. The classification head is taken as frozen.
    """
    from lora_a2.config.run import load_config, make_config

    config = make_config(load_config(config_file) if config_file else {}, flags)
    cost = _estimate(config)
    if as_json:
        print_json({**asdict(cost), "reduction_percent": cost.reduction_percent})
        return

    from lora_a2.display.console import print_table

    print_table(_rows(cost))


def _estimate(config: RunConfig) -> Cost:
    from lora_a2.core.types import Layout
    from lora_a2.engine.matching import choose_layers
    from lora_a2.errors import ConfigError
    from lora_a2.federation.cost import estimate_cost
    from lora_a2.model.shapes import model_shape

    if config.num_clients is None:
        raise ConfigError("num-clients: the natural partitioner takes it from the data; give the number here.")
    shape = model_shape(config.model)
    return estimate_cost(
        Layout(choose_layers(shape.layers, config.target_modules)),
        config.chosen_method(),
        r=config.r,
        rank_budgets=config.budgets(config.num_clients),
        num_server_rounds=config.num_server_rounds,
        full_parameters=shape.full_parameters,
        fraction_train=config.fraction_train,
        dtype=config.wire_dtype,
    )


def _rows(cost: Cost) -> list[tuple[str, str]]:
    from lora_a2.display.progress import human_bytes, saving

    rows = [("Clients a round", f"{cost.clients_per_round:,}")]
    for way in ("uploaded", "downloaded"):
        parameters, least, greatest = (getattr(cost, f"{way}_parameters{end}") for end in ("", "_min", "_max"))
        rows.append((f"{way.capitalize()} parameters", f"{parameters:,}"))
        if least != greatest:
            rows.append(("  depending on the ranks chosen", f"{least:,} to {greatest:,}"))
        rows.append((way.capitalize(), human_bytes(getattr(cost, f"{way}_bytes"))))
    return [
        *rows,
        ("Full fine-tuning would upload", f"{cost.full_finetuning_parameters:,} parameters"),
        ("Saved (uploads)", saving(cost.reduction_percent)),
    ]
