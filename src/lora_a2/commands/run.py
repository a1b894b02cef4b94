"""`lora-a2 run`"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from lora_a2.commands.common import config_option, examples, json_option, quiet_option, train
from lora_a2.commands.options import GroupedCommand, field_options


@click.command(
    "run",
    cls=GroupedCommand,
    epilog=examples(
        "lora-a2 run",
        "lora-a2 run --data reviews.csv --client-column user --model roberta-base",
        "lora-a2 run --data tickets.csv --client-column site --baselines local,centralised --personalize 1",
        "lora-a2 run --config study.toml --rank-budget 1 --seed 7 --json > result.json",
    ),
)
@config_option
@json_option
@quiet_option
@field_options()
def command(config_file: Path | None, as_json: bool, quiet: bool, **flags: Any) -> None:
    """Fine-tune a model on federated data, all clients in this process.

    Without options: the helpdesk data set on 10 clients, in a few minutes on a laptop. Any Ctrl-C or crash can be
    continued with "lora-a2 resume".
    """
    began = time.perf_counter()
    from lora_a2.config.run import load_config, make_config

    config = make_config(load_config(config_file) if config_file else {}, flags)

    from lora_a2.runs.jobs import launch

    train(lambda observer: launch(config, observer, began=began), quiet=quiet, as_json=as_json)
