"""`lora-a2 evaluate`"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_a2.commands.common import examples, json_option, print_json, say_standing, trust_option, warnings_as_lines
from lora_a2.commands.options import GroupedCommand, field_options
from lora_a2.data.file_options import FILE_OPTIONS
from lora_a2.settings.errors import kebab

if TYPE_CHECKING:
    from lora_a2.tasks.base import Evaluation

_COLUMNS = ("prompt_column", "completion_column", "messages_column", "references_column")
_WITHOUT_A_RUN = ("task", "model", "max_length", "system_prompt", "chat_template", "train_on", "dtype", "device")


@click.command(
    "evaluate",
    cls=GroupedCommand,
    epilog=examples(
        "lora-a2 evaluate runs/helpdesk",
        "lora-a2 evaluate runs/helpdesk --data new-tickets.csv --client-column shop --json",
        "lora-a2 evaluate runs/shopdesk --generate 60",
        "lora-a2 evaluate --model gpt2 --data chats.jsonl --task causal-lm --dtype float32 --json",
    ),
)
@click.argument(
    "run_dir",
    metavar="[RUN_DIR]",
    required=False,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
)
@click.option("--data", help="Other data than the run's own test set: as --data of run.")
@click.option("--text-column", help="Column of the texts; the run's own if the data have it.")
@click.option("--label-column", help="Column of the labels; likewise.")
@click.option("--client-column", help="Column that tells whose example it is; likewise.")
@field_options([*FILE_OPTIONS, *_COLUMNS, *_WITHOUT_A_RUN])
@click.option(
    "--generate",
    type=click.IntRange(min=0),
    default=0,
    help="Examples that a model which writes answers, for exact match, ROUGE-L, BLEU and chrF.",
)
@trust_option
@json_option
def command(
    run_dir: Path | None,
    data: str | None,
    text_column: str | None,
    label_column: str | None,
    client_column: str | None,
    generate: int,
    trust_remote_code: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Measure a run, or a language model without one, on test data.

    A run that is not finished is measured with the model of its last finished round.

    A classifier: accuracy, macro-F1, the accuracy of always guessing the largest class; accuracy client by client; precision,
    recall and F1 class by class; and which classes it confuses. The worst are shown, all are in --json. A model that writes: loss, perplexity, token accuracy; its sums
    (loss_sum, learnt_tokens) and the numbers of examples used, cut and dropped stand beside them in --json.
    """
    columns = {
        "text_column": text_column,
        "client_column": client_column,
        **{n: given.pop(n) for n in (*FILE_OPTIONS, *_COLUMNS)},
    }
    model = {name: value for name, value in given.items() if value is not None}
    if run_dir is None:
        with warnings_as_lines():
            found = _without_a_run(data, columns, model, label_column, generate, trust_remote_code)
    else:
        from lora_a2.runs.directory import require_some

        if model:
            raise click.UsageError(
                f"--{kebab(next(iter(model)))} is for a model without a run: leave RUN_DIR or it out."
            )
        if data is None and (label_column or any(columns.values())):
            raise click.UsageError(
                "Columns and how files are read are of --data: give it too.", click.get_current_context()
            )

        require_some(run_dir)

        from lora_a2.runs.measuring import evaluate_run

        say_standing(run_dir)
        with warnings_as_lines():
            found = evaluate_run(
                run_dir,
                data=data,
                label_column=label_column,
                trust_remote_code=trust_remote_code,
                generate=generate,
                **columns,
            )
    if as_json:
        print_json(found.to_json())
        return

    _print(found)


def _print(found: Evaluation) -> None:
    from lora_a2.display.console import print_table
    from lora_a2.display.tables import print_rows
    from lora_a2.tasks.registry import measured

    task = measured(found.metrics)
    assert task is not None, "an evaluation has the primary metric of its task"
    rows = [
        ("Examples", f"{found.num_examples:,}"),
        (task.headline, task.show(found.metrics[task.primary])),
        *task.lines({**found.metrics, **found.extra}),
    ]
    per_client = (
        ("Mean of the clients", found.client_mean),
        ("Worst tenth of clients", found.client_worst_tenth),
        ("Standard deviation", found.client_std),
    )
    print_table([*rows, *((name, task.show(value)) for name, value in per_client if value is not None)])
    for name, table in found.tables.items():
        if table:
            print_rows(name.capitalize(), table, task.show_metric)


def _without_a_run(
    data: str | None,
    columns: Mapping[str, str | None],
    model: Mapping[str, Any],
    label_column: str | None,
    generate: int,
    trust_remote_code: bool,
) -> Evaluation:
    if "model" not in model or data is None:
        raise click.UsageError("Give a RUN_DIR, or --model and --data.", click.get_current_context())
    from lora_a2.config.opening import with_task
    from lora_a2.config.run import make_config
    from lora_a2.runs.measuring import evaluate_model

    flags = {**columns, **model, "label_column": label_column, "data": data, "generate": generate}
    return evaluate_model(with_task(make_config({}, {**flags, "trust_remote_code": trust_remote_code or None})))
