"""`lora-a2 partition`"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_a2.commands.common import config_option, examples, json_option, print_json
from lora_a2.commands.options import GroupedCommand, field_options
from lora_a2.config.run import RunConfig, fields_of

if TYPE_CHECKING:
    from lora_a2.data.split import SplitTable

_FIELDS = fields_of("Data", "Clients")


@click.command(
    "partition",
    cls=GroupedCommand,
    epilog=examples(
        "lora-a2 partition --data banking77 --num-clients 30 --alpha 0.01",
        "lora-a2 partition --data tweets.jsonl.gz --client-column user --min-client-examples 5",
        "lora-a2 partition --config study.toml --seed 7 --csv split.csv",
    ),
)
@config_option
@click.option(
    "--csv",
    "csv_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the number of training examples of each class at each client to a csv file.",
)
@json_option
@field_options([*_FIELDS, "seed"])
def command(config_file: Path | None, csv_file: Path | None, as_json: bool, **flags: Any) -> None:
    """Show who would hold which examples, without running anything.

    The same options and seed give a run the same split.
    """
    from lora_a2.config.run import load_config, make_config

    table, notes = _table(make_config(load_config(config_file) if config_file else {}, flags))
    for note in notes:
        click.echo(note, err=True)
    if csv_file is not None:
        _write_csv(table, csv_file)
    if as_json:
        print_json({**table.statistics(), "clients": table.rows()})
    else:
        _print(table.rows(), table.statistics())


def _table(config: RunConfig) -> tuple[SplitTable, Sequence[str]]:
    from lora_a2.config.setup import open_data, with_task
    from lora_a2.data.split import split_data, split_table

    config = with_task(config)
    data = open_data(config)
    return split_table(data, split_data(data, **config.split_options())), data.notes


def _write_csv(table: SplitTable, path: Path) -> None:
    import pandas as pd

    from lora_a2.studies.results import harmless
    from lora_a2.system.files import write_atomic

    frame = pd.DataFrame(table.train, index=pd.Index(table.names, name="client"), columns=list(table.label_names))
    write_atomic(path, harmless(frame).to_csv().encode())


def _print(rows: Sequence[Mapping[str, Any]], statistics: Mapping[str, int | None]) -> None:
    from rich.box import SIMPLE
    from rich.table import Column, Table

    from lora_a2.display.live import print_table, stdout_console
    from lora_a2.display.progress import percent

    table = Table(Column("Client", no_wrap=True), box=SIMPLE)
    for header in ("Train", "Classes", "Test", "Classes"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("Largest class")
    for row in rows:
        numbers = (row[k] for k in ("train_examples", "train_classes", "test_examples", "test_classes"))
        top = f"{row['top_class']} ({percent(row['top_share'])})"
        table.add_row(row["client"], *(f"{n:,}" for n in numbers), top)
    console = stdout_console()
    console.print(table)
    s = statistics
    summary = [
        ("Clients", f"{s['num_clients']:,}"),
        ("Training examples", f"{s['train_examples']:,}"),
        ("  of a client, max / min", f"{s['max_train_examples']:,} / {s['min_train_examples']:,}"),
        ("Classes of a client, max / min", f"{s['max_train_classes']:,} / {s['min_train_classes']:,}"),
        ("Test examples", f"{s['test_examples']:,}"),
        ("Clients without a test example", f"{s['clients_without_test']:,}"),
    ]
    print_table(summary, console)
