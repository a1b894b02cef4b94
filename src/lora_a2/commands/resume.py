"""`lora-a2 resume`"""

from __future__ import annotations

from pathlib import Path

import click

from lora_a2.commands.common import examples, json_option, quiet_option, run_dir_argument, train, trust_option


@click.command(
    "resume",
    epilog=examples(
        "lora-a2 resume runs/helpdesk-lora-a2-20260101-120000",
        "lora-a2 resume runs/helpdesk-lora-a2-20260101-120000 --quiet --json",
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
@trust_option
@json_option
@quiet_option
def command(run_dir: Path, from_round: int | None, trust_remote_code: bool, as_json: bool, quiet: bool) -> None:
    """Continue a run, a comparison, or a sweep, that was interrupted, from its last finished round.

    The result is the same, byte for byte, as if it had never been interrupted.
    """
    several = next((name for name in ("compare.json", "sweep.json") if (run_dir / name).is_file()), None)
    if several is not None and from_round is not None:
        raise click.UsageError("--from-round is for one run: name the run directory.", click.get_current_context())
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

    chosen = {} if from_round is None else {"from_round": from_round}
    train(
        lambda observer: resume(run_dir, observer, trust_remote_code=trust_remote_code, **chosen),
        quiet=quiet,
        as_json=as_json,
    )
