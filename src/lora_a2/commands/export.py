"""`lora-a2 export`"""

from __future__ import annotations

from pathlib import Path

import click

from lora_a2.commands.common import examples, run_dir_argument, trust_option


@click.command(
    "export",
    epilog=examples(
        "lora-a2 export runs/shopdesk shopdesk-adapter",
        "lora-a2 export runs/shopdesk shopdesk-model --merged",
        "lora-a2 export runs/shopdesk shopdesk-model --merged --push-to-hub me/shopdesk",
    ),
)
@run_dir_argument
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--merged", is_flag=True, help="A plain Transformers folder instead of an adapter: all that was learnt is in it."
)
@click.option("--push-to-hub", metavar="NAME", help="Upload the folder to this repository of the Hugging Face hub too.")
@trust_option
def command(run_dir: Path, folder: Path, merged: bool, push_to_hub: str | None, trust_remote_code: bool) -> None:
    """Write a finished run's model to DIR, with a model card: an adapter in PEFT's format, or a whole model.

    Of methods that move base weights, what all rounds taught is one adapter of a higher rank, where that is exact and small;
    otherwise they need --merged. For llama.cpp, give a merged folder to its convert_hf_to_gguf.py.
    """
    from lora_a2.runs.directory import require_some

    require_some(run_dir)

    from lora_a2.runs.export import export

    export(run_dir, folder, merged=merged, push_to_hub=push_to_hub, trust_remote_code=trust_remote_code)
    click.echo(f"Written: {folder}")
    if push_to_hub is not None:
        click.echo(f"On the hub: {push_to_hub}")
