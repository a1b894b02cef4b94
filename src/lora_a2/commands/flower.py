"""`lora-a2 flower …`"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from lora_a2.commands import certificates, local_deployment
from lora_a2.commands.common import examples, json_option, report_checks
from lora_a2.errors import ConfigError
from lora_a2.settings.task import TASKS


@click.group(
    "flower",
    epilog=examples(
        "lora-a2 flower local-deployment --nodes 3",
        "lora-a2 flower new tickets-app",
        "lora-a2 flower certificates keys --nodes 5",
        "lora-a2 flower check --app tickets-app",
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


@command.command(
    "check",
    epilog=examples(
        "lora-a2 flower check",
        "lora-a2 flower check --certificates /etc/lora-a2 --host superlink.example.org",
        "lora-a2 flower check --app tickets-app --run-config \"labels='billing,delivery' num-clients=3\"",
    ),
)
@click.option(
    "--certificates",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="Folder with ca.crt, server.pem, server.key, superlink.pem and superlink.key.",
)
@click.option(
    "--host", "hosts", multiple=True, metavar="HOST", help="Name by which nodes reach the server; repeat for more."
)
@click.option("--port", type=click.IntRange(1, 65535), default=9092, show_default=True, help="The proxy's port.")
@click.option(
    "--superlink-port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="The SuperLink's port."
)
@click.option(
    "--app",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="The app that will be run: its data, its model and where its run goes are looked at.",
)
@click.option("--run-config", multiple=True, metavar="TEXT", help="As 'flwr run' will be given it.")
@json_option
def check(as_json: bool, **given: Any) -> int:
    """Look at all that the server's side of a first round needs, a line each; nothing is sent or started.

    Versions, nginx, certificates and their keys, ports, SuperLinks that earlier simulations left, and of an app its
    configuration, data, model and state folder. Exit status 1: something fails.
    """
    require_flower()
    from lora_a2.flower.server_checks import ServerSetup, server_checks
    from lora_a2.system.checks import checked

    return report_checks(checked(server_checks(ServerSetup(**given))), as_json=as_json)


def require_flower() -> None:
    """Checks that Flower is installed.

    Raises:
        ConfigError: it is not.
    """
    if find_spec("flwr") is None:
        raise ConfigError("Flower is not installed: install lora-a2 with its extra, lora-a2[flower].")


command.add_command(local_deployment.command)
command.add_command(certificates.command)
