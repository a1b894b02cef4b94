"""`lora-a2 resume`"""

from __future__ import annotations

import time
from pathlib import Path

import click

from lora_a2.commands.common import examples, json_option, quiet_option, run_dir_argument, train, trust_option
from lora_a2.settings.errors import kebab

_BATCHES = ("compare.json", "sweep.json")
"""What tells that a folder holds several runs."""


@click.command(
    "resume",
    epilog=examples(
        "lora-a2 resume runs/helpdesk-lora-a2-20260101-120000",
        "lora-a2 resume runs/helpdesk-lora-a2-20260101-120000 --quiet --json",
        "lora-a2 resume runs/helpdesk-lora-a2-20260101-120000 --num-server-rounds 20",
        "lora-a2 resume runs/helpdesk-lora-a2-20260101-120000 --from-round 7",
    ),
)
@run_dir_argument
@click.option(
    "--from-round",
    type=click.IntRange(1),
    metavar="N",
    help="Continue after round N and train later ones again: for a run whose last checkpoint is damaged. The checkpoints "
    "of the last two rounds are kept.",
)
@click.option(
    "--num-server-rounds",
    type=click.IntRange(1),
    metavar="N",
    help="Number of server rounds in all, to add some to a run, finished or not. The rounds that are done stay as they are.",
)
@trust_option
@json_option
@quiet_option
def command(
    run_dir: Path,
    from_round: int | None,
    num_server_rounds: int | None,
    trust_remote_code: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Continue a run, a comparison, or a sweep, that was interrupted, from its last finished round.

    The result is the same, byte for byte, as if it had never been interrupted.
    """
    began = time.perf_counter()
    several = next((name for name in _BATCHES if (run_dir / name).is_file()), None)
    given = {"from_round": from_round, "num_server_rounds": num_server_rounds}
    chosen = {name: value for name, value in given.items() if value is not None}
    if several is not None and chosen:
        raise click.UsageError(
            f"--{kebab(next(iter(chosen)))} is for one run: name the run directory.", click.get_current_context()
        )
    batch = next((name for name in (*_BATCHES, "plan.json") if (run_dir.absolute().parent / name).is_file()), None)
    if num_server_rounds is not None and batch is not None:
        raise click.UsageError(
            f"--num-server-rounds: {run_dir} is one of several runs, whose results are compared as they were planned "
            f"({run_dir.absolute().parent / batch}); it keeps its number of rounds.",
            click.get_current_context(),
        )
    if len(chosen) > 1:
        raise click.UsageError(
            "--from-round trains rounds again, --num-server-rounds adds some: give one, and then the other.",
            click.get_current_context(),
        )
    if (run_dir / "compare.json").is_file():
        from lora_a2.commands.compare import finish

        finish(run_dir, quiet=quiet, as_json=as_json)
        return
    if (run_dir / "sweep.json").is_file():
        from lora_a2.commands import sweep

        sweep.finish(run_dir, quiet=quiet, as_json=as_json)
        return

    from lora_a2.runs.directory import require_some

    require_some(run_dir)

    from lora_a2.runs.jobs import resume

    train(
        lambda observer: resume(run_dir, observer, trust_remote_code=trust_remote_code, began=began, **chosen),
        quiet=quiet,
        as_json=as_json,
    )
