"""`lora-a2 evaluate`"""

from __future__ import annotations

from pathlib import Path

import click

from lora_a2.commands.common import examples, json_option, print_json, run_dir_argument, trust_option


@click.command(
    "evaluate",
    epilog=examples(
        "lora-a2 evaluate runs/helpdesk",
        "lora-a2 evaluate runs/helpdesk --data new-tickets.csv",
        "lora-a2 evaluate runs/helpdesk --data new-tickets.csv --client-column shop --json",
    ),
)
@run_dir_argument
@click.option("--data", help="Other data than the run's own test set: as --data of run.")
@click.option("--text-column", help="Column of the texts; the run's own if the data have it.")
@click.option("--label-column", help="Column of the labels; likewise.")
@click.option("--client-column", help="Column that tells whose example it is; likewise.")
@trust_option
@json_option
def command(
    run_dir: Path,
    data: str | None,
    text_column: str | None,
    label_column: str | None,
    client_column: str | None,
    trust_remote_code: bool,
    as_json: bool,
) -> None:
    """Measure a finished run: accuracy, macro-F1, and accuracy client by client."""
    if data is None and (text_column or label_column or client_column):
        raise click.UsageError("Columns are of --data: give it too.", click.get_current_context())

    from lora_a2.runs.jobs import evaluate_run

    found = evaluate_run(
        run_dir,
        data=data,
        text_column=text_column,
        label_column=label_column,
        client_column=client_column,
        trust_remote_code=trust_remote_code,
    )
    if as_json:
        print_json(found.to_json())
        return

    from lora_a2.display.live import print_table
    from lora_a2.tasks.registry import measured

    task = measured(found.metrics)
    assert task is not None, "an evaluation has the primary metric of its task"
    rows = [
        ("Examples", f"{found.num_examples:,}"),
        *(
            (name.replace("_", " ").capitalize(), task.show_metric(name, value))
            for name, value in found.metrics.items()
        ),
    ]
    per_client = (
        ("Mean of the clients", found.client_mean),
        ("Worst tenth of clients", found.client_worst_tenth),
        ("Standard deviation", found.client_std),
    )
    print_table([*rows, *((name, task.show(value)) for name, value in per_client if value is not None)])
