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
_ENCODING = ("task", "model", "max_length", "system_prompt", "chat_template", "train_on")


@click.command(
    "partition",
    cls=GroupedCommand,
    epilog=examples(
        "lora-a2 partition --data banking77 --num-clients 30 --alpha 0.01",
        "lora-a2 partition --data tweets.jsonl.gz --client-column user --min-client-examples 5",
        "lora-a2 partition --config study.toml --seed 7 --csv split.csv",
        "lora-a2 partition --data chats.jsonl --model gpt2 --show-example 1",
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
@click.option(
    "--show-example",
    type=click.IntRange(min=1),
    metavar="N",
    help="Show training example N as the model would see it, with what is learnt in \u27e6 \u27e7; for a model that writes.",
)
@json_option
@field_options([*_FIELDS, *_ENCODING, "seed"])
def command(
    config_file: Path | None, csv_file: Path | None, show_example: int | None, as_json: bool, **flags: Any
) -> None:
    """Show who would hold which examples, without running anything.

    The same options and seed give a run the same split.
    """
    from lora_a2.config.run import load_config, make_config

    config = make_config(load_config(config_file) if config_file else {}, flags)
    if show_example is not None:
        _show_example(config, show_example - 1, as_json)
        return
    from lora_a2.data.split import ALL

    table, notes = _table(config)
    for note in notes:
        click.echo(note, err=True)
    if csv_file is not None:
        _write_csv(table, csv_file)
    if as_json:
        print_json({**table.statistics(), "clients": table.rows()})
    else:
        _print(table.rows(), table.statistics(), classes=table.label_names != (ALL,))


def _table(config: RunConfig) -> tuple[SplitTable, Sequence[str]]:
    from lora_a2.config.opening import open_data, with_task
    from lora_a2.data.split import split_data, split_table

    config = with_task(config)
    data = open_data(config)
    return split_table(data, split_data(data, **config.split_options())), data.notes


def _show_example(config: RunConfig, index: int, as_json: bool) -> None:
    """Prints a training example as tokens; no weights are loaded."""
    from lora_a2.config.opening import open_data, with_task
    from lora_a2.data.written import WrittenData
    from lora_a2.errors import ConfigError
    from lora_a2.model.causal import load_writer_tokenizer
    from lora_a2.tasks.base import EncodingOptions
    from lora_a2.tasks.causal_lm.encoding import encode
    from lora_a2.tasks.causal_lm.showing import describe_example, example_values

    config = with_task(config)
    data = open_data(config)
    if not isinstance(data, WrittenData):
        raise ConfigError("show-example: it is for a model that writes; give --task causal-lm.")
    tokenizer = load_writer_tokenizer(config.model, config.trust_remote_code)
    options = EncodingOptions(config.max_length, config.system_prompt, config.chat_template, config.train_on)
    encoded = encode(tokenizer, data.train, options)
    if as_json:
        print_json(example_values(tokenizer, encoded, index))
        return
    click.echo(describe_example(tokenizer, encoded, index))
    cut = f"{encoded.num_cut} cut, {encoded.num_dropped} dropped of {len(data.train)} training examples"
    for note in (*encoded.notes, cut):
        click.echo(note, err=True)


def _write_csv(table: SplitTable, path: Path) -> None:
    import pandas as pd

    from lora_a2.studies.results import harmless
    from lora_a2.system.files import write_atomic

    frame = pd.DataFrame(table.train, index=pd.Index(table.names, name="client"), columns=list(table.label_names))
    write_atomic(path, harmless(frame).to_csv().encode())


def _print(rows: Sequence[Mapping[str, Any]], statistics: Mapping[str, int | None], classes: bool) -> None:
    from lora_a2.display.console import print_table, stdout_console
    from lora_a2.display.progress import percent
    from lora_a2.display.tables import print_columns

    columns = {
        "train_examples": "Train",
        "train_classes": "Train classes",
        "test_examples": "Test",
        "test_classes": "Test classes",
    }
    shown = [name for name in columns if classes or not name.endswith("classes")]
    header = ["Client", *(columns[name] for name in shown), *(["Largest class"] if classes else [])]
    cells = [
        [row["client"], *(f"{row[name]:,}" for name in shown)]
        + ([f"{row['top_class']} ({percent(row['top_share'])})"] if classes else [])
        for row in rows
    ]
    console = stdout_console()
    print_columns(header, cells, console, left=[len(shown) + 1])
    s = statistics
    summary = [
        ("Clients", f"{s['num_clients']:,}"),
        ("Training examples", f"{s['train_examples']:,}"),
        ("  of a client, max / min", f"{s['max_train_examples']:,} / {s['min_train_examples']:,}"),
        *(
            [("Classes of a client, max / min", f"{s['max_train_classes']:,} / {s['min_train_classes']:,}")]
            if classes
            else []
        ),
        ("Test examples", f"{s['test_examples']:,}"),
        ("Clients without a test example", f"{s['clients_without_test']:,}"),
    ]
    print_table(summary, console)
