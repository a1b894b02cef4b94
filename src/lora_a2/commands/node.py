"""`lora-a2 node`"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import click

from lora_a2.commands.common import examples, json_option, report_checks, trust_option
from lora_a2.commands.options import field_options
from lora_a2.data.file_options import FILE_OPTIONS, take_file_options

_OWN = ("model", "device", "dtype", "trust_remote_code")
"""What a node decides of the run's configuration; the other options without a name of their own below are of its data."""


@dataclass(frozen=True)
class Connection:
    """What a SuperNode is told of the server, for `--check`."""

    superlink: str | None
    root_certificates: Path | None
    auth_supernode_private_key: Path | None
    as_json: bool


def check_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--check, and the options that it takes; they arrive together as `check`, which is None without it.

    The names are those of `flower-supernode`, which is given the same.
    """

    @wraps(function)
    def wrapped(**given: Any) -> Any:
        check = given.pop("check")
        connection = Connection(**{name: given.pop(name) for name in Connection.__dataclass_fields__})
        if not check and connection != Connection(None, None, None, False):
            raise click.UsageError(
                "--superlink, --root-certificates, --auth-supernode-private-key and --json need --check."
            )
        return function(check=connection if check else None, **given)

    file = click.Path(exists=True, dir_okay=False, path_type=Path)
    for option in (
        json_option,
        click.option("--auth-supernode-private-key", type=file, metavar="FILE", help="With --check: the node's key."),
        click.option("--root-certificates", type=file, metavar="FILE", help="With --check: the server's authority."),
        click.option("--superlink", metavar="HOST:PORT", help="With --check: the server, reached by a TLS handshake."),
        click.option(
            "--check",
            is_flag=True,
            help="Look at all that a first round needs, a line each, and end: nothing is sent. Exit status 1: something fails.",
        ),
    ):
        wrapped = option(wrapped)
    return wrapped


log_format_option = click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="The log on standard error: lines for people, or a JSON object each.",
)


def _check(
    connection: Connection, data: dict[str, Any], own: dict[str, Any], places: tuple[Path, Path, Path | None]
) -> int:
    from itertools import chain

    from lora_a2.flower.node_checks import connection_checks
    from lora_a2.node.checks import NodeSetup, node_checks
    from lora_a2.node.own_data import OwnData
    from lora_a2.node.participant import own_fields
    from lora_a2.system.checks import checked

    socket_path, store, policy = places
    setup = NodeSetup(OwnData(**data), own_fields(**own), socket_path, store.expanduser(), policy)
    server = connection_checks(
        connection.superlink, connection.root_certificates, connection.auth_supernode_private_key
    )
    return report_checks(checked(chain(server, node_checks(setup))), as_json=connection.as_json)


@click.command(
    "node",
    epilog=examples(
        "lora-a2 node --data tickets.csv --socket ~/.lora-a2/worker.sock",
        "lora-a2 node --data reviews.jsonl --text-column body --label-column stars --test-fraction 0 \\",
        "             --model roberta-base --socket /run/lora-a2/worker.sock --store /var/lib/lora-a2",
        "lora-a2 node --data tickets.xlsx --on-missing drop --socket ~/.lora-a2/worker.sock --policy node.toml",
        "lora-a2 node --check --data tickets.csv --socket ~/.lora-a2/worker.sock --superlink host:9092 \\",
        "             --root-certificates ca.crt --auth-supernode-private-key node.key",
        "",
        "node.toml, all of it optional:",
        "  model-fingerprints = ['5d1f0c']     # models that may be trained (default: all)",
        "  methods = ['lora-a2', 'ffa-lora']   # methods that may be used (default: all)",
        "  labels = ['billing', 'delivery']    # the class names that a run must have (default: all)",
        "  max-local-epochs = 5                # most epochs in a round (default: 100)",
        "  max-batch-size = 32                 # largest batch (default: 4096)",
        "  max-rank = 16                       # largest rank of the adapter (default: 1024)",
        "  max-rounds = 50                     # most server rounds in a run (default: 10000)",
        "  max-seconds = 600                   # longest work on one request (default: 7200)",
        "  max-message = 100                   # largest message in megabytes (default: 4096)",
        "  evaluation = false                  # tell how many answers are right (default: true)",
        "  round-examples-to = 50              # tell numbers of examples as multiples (default: 1)",
    ),
)
@click.option("--data", required=True, metavar="FILE", help="The node's own examples; they never leave this machine.")
@click.option("--text-column", metavar="NAME", help="Column of the texts; found by itself if the name is usual.")
@click.option("--label-column", metavar="NAME", help="Column of the labels; found by itself if the name is usual.")
@click.option("--prompt-column", metavar="NAME", help="Column of the prompts, for a model that writes; likewise.")
@click.option("--completion-column", metavar="NAME", help="Column of the answers; likewise.")
@click.option("--messages-column", metavar="NAME", help="Column of whole chats; likewise.")
@field_options(FILE_OPTIONS)
@click.option("--test-data", metavar="FILE", help="The node's own test examples, for evaluation on the node.")
@click.option(
    "--test-fraction",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.2,
    show_default=True,
    help="Share held out for testing if there is no test set; 0: none.",
)
@click.option("--model", default="all-MiniLM-L6-v2", show_default=True, help="The model that the federation trains.")
@trust_option
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 and so on.")
@click.option("--dtype", help="Number type of the model's computation; the run's if left out.")
@click.option(
    "--num-threads",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Cores that training uses; with 1 the results are those of the simulator, byte for byte.",
)
@click.option(
    "--socket",
    "socket_path",
    required=True,
    type=click.Path(path_type=Path),
    help="Where to listen: the worker-socket of the SuperNode's --node-config. Its folder must be yours alone.",
)
@click.option(
    "--store",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("~/.lora-a2/clients"),
    show_default=True,
    help="Folder for what the node keeps from round to round: what it was sent, and private factors.",
)
@click.option(
    "--policy",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="TOML file with what this node allows, whatever a server asks; see below.",
)
@log_format_option
@check_options
def command(
    check: Connection | None,
    log_format: str,
    num_threads: int,
    socket_path: Path,
    store: Path,
    policy: Path | None,
    **given: Any,
) -> int | None:
    """Train for a federation with this machine's own data, until stopped.

    The worker holds data and model, and answers the SuperNode beside it through a local socket. Start it before the
    SuperNode, as the same user:

    \b
      flower-supernode … --node-config 'partition-id=0 num-partitions=3 worker-socket="/path/to/worker.sock"'
    """
    own = {name: given.pop(name) for name in _OWN}
    given["file"] = take_file_options(given)
    if check is not None:
        return _check(check, given, own, (socket_path, store, policy))
    from lora_a2.node.logs import log, start_log

    start_log(log_format)
    from lora_a2.node.own_data import OwnData
    from lora_a2.node.participant import Participant, own_fields, threads
    from lora_a2.node.policy import Policy, load_policy
    from lora_a2.node.worker import listening, serve

    allowed = Policy.model_validate({}) if policy is None else load_policy(policy)
    threads(num_threads)
    data = OwnData(**given)
    count = data.check()
    participant = Participant(data, store.expanduser(), allowed, own_fields(**own))
    with listening(socket_path) as listener:
        log.info("Ready: %d examples of %s, listening at %s.", count, data.data, socket_path)
        serve(listener, participant.answer, allowed.max_message * 10**6)
    return None
