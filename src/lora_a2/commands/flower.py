"""`lora-a2 flower …`"""

from __future__ import annotations

from pathlib import Path

import click

from lora_a2.commands import certificates, local_deployment
from lora_a2.commands.common import examples
from lora_a2.settings.task import TASKS


@click.group(
    "flower",
    epilog=examples(
        "lora-a2 flower local-deployment --nodes 3",
        "lora-a2 flower new tickets-app",
        "lora-a2 flower certificates keys --nodes 5",
    ),
)
def command() -> None:
    """Federations across machines, with Flower: the same methods and the same bytes as "lora-a2 run".

    Needs the extra: pip install 'lora-a2[flower]'.
    """


@command.command(
    "new", epilog=examples("lora-a2 flower new tickets-app", "lora-a2 flower new apps/assistant --task causal-lm")
)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--task",
    type=click.Choice(TASKS),
    default=TASKS[0],
    show_default=True,
    help="What its model is fine-tuned for: to label texts, or to write.",
)
def new(folder: Path, task: str) -> None:
    """Write a small Flower app for your own data into DIR.

    DIR's name is the app's: lower-case letters, digits and hyphens. Its data.py says where the examples come from; its README.md says how to run it.
    """
    from lora_a2.flower.new_app import write_app

    written = write_app(folder, task)
    for path in written:
        click.echo(path)
    [data] = [path for path in written if path.name == "data.py"]
    click.echo(f"Next: put your data into {data}, then follow {folder / 'README.md'}")


command.add_command(local_deployment.command)
command.add_command(certificates.command)
