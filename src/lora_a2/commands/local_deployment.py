"""`lora-a2 flower local-deployment`"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from lora_a2.commands.common import config_option, examples, json_option, print_json, quiet_option
from lora_a2.commands.options import GroupedCommand, field_options
from lora_a2.config.run import RunConfig
from lora_a2.system.invocation import program

_GIVEN_OTHERWISE = {"num_clients", "clients_per_pass", "num_workers", "device"}


@click.command(
    "local-deployment",
    cls=GroupedCommand,
    short_help="Deploy on this machine, over TLS, and run.",
    epilog=examples(
        "lora-a2 flower local-deployment --nodes 3",
        "lora-a2 flower local-deployment --nodes 5 --data tickets.csv --client-column branch --min-train-nodes 4",
        "lora-a2 flower local-deployment --resume runs/helpdesk-lora-a2-20260101-120000",
    ),
)
@click.option("--nodes", type=click.IntRange(min=1), default=3, show_default=True, help="Number of SuperNodes.")
@click.option(
    "--min-train-nodes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="With fewer nodes, or fewer usable replies, a round does not count.",
)
@click.option(
    "--round-timeout",
    type=click.FloatRange(min=1),
    default=3600.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a round waits for a node's reply.",
)
@click.option(
    "--resume",
    "run_dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="RUN_DIR",
    help="Continue this run after its last finished round; its options are those that it was started with.",
)
@config_option
@json_option
@quiet_option
@field_options([name for name in RunConfig.model_fields if name not in _GIVEN_OTHERWISE])
def command(
    nodes: int,
    min_train_nodes: int,
    round_timeout: float,
    run_dir: Path | None,
    config_file: Path | None,
    as_json: bool,
    quiet: bool,
    **flags: Any,
) -> None:
    """Deploy on this machine: a real SuperLink behind nginx and SuperNodes over TLS, with a key and a data file for each node.

    The data are split over the nodes as "lora-a2 run" splits them over clients, and the adapter is the same. All processes
    and temporary files are gone in the end; the run directory stays.
    """
    from lora_a2.config.run import load_config, make_config
    from lora_a2.flower.local import launch, resume

    options = {"min-train-nodes": min_train_nodes, "round-timeout": round_timeout}
    say = (lambda line: None) if quiet else (lambda line: click.echo(line, err=True))
    try:
        if run_dir is None:
            values = {**(load_config(config_file) if config_file else {}), "num-clients": nodes}
            summary = launch(make_config(values, flags), options, say)
        else:
            summary = resume(run_dir, options, say)
    except KeyboardInterrupt as error:
        raise click.Abort(str(error)) from None
    if as_json:
        print_json(summary)
        return
    for name, value in summary.items():
        click.echo(f"{name.replace('_', ' ')}: {value}")
    click.echo(f"Evaluate it with: {program()} evaluate {shlex.quote(str(summary['output_dir']))}")
