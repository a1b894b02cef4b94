"""`lora-a2 node`"""

from __future__ import annotations

from pathlib import Path

import click

from lora_a2.commands.common import examples, trust_option
from lora_a2.commands.options import field_options
from lora_a2.data.file_options import FILE_OPTIONS, take_file_options


@click.command(
    "node",
    epilog=examples(
        "lora-a2 node --data tickets.csv --socket ~/.lora-a2/worker.sock",
        "lora-a2 node --data reviews.jsonl --text-column body --label-column stars --test-fraction 0 \\",
        "             --model roberta-base --socket /run/lora-a2/worker.sock --store /var/lib/lora-a2",
        "lora-a2 node --data tickets.xlsx --on-missing drop --socket ~/.lora-a2/worker.sock --policy node.toml",
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
def command(
    data: str,
    test_data: str | None,
    test_fraction: float,
    model: str,
    trust_remote_code: bool,
    device: str,
    dtype: str | None,
    num_threads: int,
    socket_path: Path,
    store: Path,
    policy: Path | None,
    **columns: str | None,
) -> None:
    """Train for a federation with this machine's own data, until stopped.

    The worker holds data and model, and answers the SuperNode beside it through a local socket. Start it before the
    SuperNode, as the same user:

    \b
      flower-supernode … --node-config 'partition-id=0 num-partitions=3 worker-socket="/path/to/worker.sock"'
    """
    from lora_a2.node.logs import log, start_log

    start_log()
    from lora_a2.node.own_data import OwnData
    from lora_a2.node.participant import Participant, own_fields, threads
    from lora_a2.node.policy import Policy, load_policy
    from lora_a2.node.worker import listening, serve

    allowed = Policy.model_validate({}) if policy is None else load_policy(policy)
    threads(num_threads)
    file = take_file_options(columns)
    own = OwnData(data, **columns, test_data=test_data, test_fraction=test_fraction, file=file)
    count = own.check()
    participant = Participant(own, store.expanduser(), allowed, own_fields(model, device, dtype, trust_remote_code))
    with listening(socket_path) as listener:
        log.info("Ready: %d examples of %s, listening at %s.", count, data, socket_path)
        serve(listener, participant.answer, allowed.max_message * 10**6)
