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
    ),
)
@run_dir_argument
@trust_option
@json_option
@quiet_option
def command(run_dir: Path, trust_remote_code: bool, as_json: bool, quiet: bool) -> None:
    """Continue a run, a comparison, or a sweep, that was interrupted, from its last finished round.

    The result is the same, byte for byte, as if it had never been interrupted.
    """
    if (run_dir / "compare.json").is_file():
        from lora_a2.commands.compare import finish

        finish(run_dir, quiet=quiet, as_json=as_json)
        return
    if (run_dir / "sweep.json").is_file():
        from lora_a2.commands import sweep

        sweep.finish(run_dir, quiet=quiet, as_json=as_json)
        return

    from lora_a2.jobs import resume

    train(lambda observer: resume(run_dir, observer, trust_remote_code=trust_remote_code), quiet=quiet, as_json=as_json)
