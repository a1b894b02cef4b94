"""A run's rounds as a table, for who wants to look at them in pandas."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_a2.errors import RunError
from lora_a2.federation.records import RoundRecord
from lora_a2.runs.directory import RunDirectory
from lora_a2.tasks.base import CLIENT_FIGURES, PERSONAL
from lora_a2.tasks.registry import task_of

if TYPE_CHECKING:
    import pandas as pd

TRAFFIC = ("uploaded_bytes", "downloaded_bytes", "uploaded_parameters", "downloaded_parameters")


def history(source: str | os.PathLike[str] | Iterable[RoundRecord]) -> pd.DataFrame:
    """One row a server round, of a run directory, finished or not, or of records as `simulate` yields them.

    Columns, all there in every table:
        server_round: from 1.
        trained: the factors that clients trained: "A", "B" or "A+B"; empty if they trained whole backbones.
        clients, refused: how many replies counted, and how many were left out.
        train_loss: mean over the cohort's examples.
        the task's metrics, of the global model: accuracy and macro_f1 of classification, fractions of 1; perplexity, loss
            and token_accuracy of causal-lm, and exact_match, rouge_l, bleu and chrf if texts were written. NaN in rounds without evaluation. Records without any are of classification,
            unless their run directory says otherwise.
        client_mean, client_worst_tenth, client_std: of the clients' accuracy or perplexity; NaN likewise, and where no client
            has a test example of its own.
        personal_accuracy, or personal_perplexity: of the clients' own models, for methods that make such; else NaN.
        uploaded_bytes, downloaded_bytes, uploaded_parameters, downloaded_parameters: of this round, bytes as encoded; and
            the same with total_ in front: of all rounds up to this one.
        seconds: of the round, and seconds_PHASE for each phase that a round of these has (0 if one has not).

    Raises:
        RunError: there is no run directory, or it is damaged.
        ConfigError: its task is not known.
    """
    import pandas as pd

    records, config = _read(Path(source)) if isinstance(source, str | os.PathLike) else (list(source), {})
    task = task_of((record.metrics for record in records), config)
    own = f"{PERSONAL}_{task.primary}"
    metrics = (*task.columns(record.metrics for record in records), *CLIENT_FIGURES)
    phases = list(dict.fromkeys(phase for record in records for phase in record.seconds))
    rows = [
        {
            **_row(record, phases),
            **{name: record.metrics.get(name) for name in metrics},
            own: record.metrics.get(PERSONAL, {}).get(task.primary),
        }
        for record in records
    ]
    columns = ("server_round", "trained", "clients", "refused", "train_loss", *metrics, own, *TRAFFIC)
    seconds = ("seconds", *(f"seconds_{phase}" for phase in phases))
    table = pd.DataFrame(rows, columns=[*columns, *seconds])
    whole = ("server_round", "clients", "refused", *TRAFFIC)
    numbers = ("train_loss", *metrics, own, *seconds)
    table = table.astype({"trained": object, **dict.fromkeys(whole, "int64"), **dict.fromkeys(numbers, "float64")})
    for place, name in enumerate(TRAFFIC, start=list(table.columns).index("seconds")):
        table.insert(place, f"total_{name}", table[name].cumsum())
    return table


def _read(path: Path) -> tuple[list[RoundRecord], Mapping[str, Any]]:
    """The records of a run directory, and its configuration."""
    run = RunDirectory.open(path)
    try:
        config = tomllib.loads((path / "config.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"The run {path} is damaged: {error}.") from error
    return run.load_records(), config


def _row(record: RoundRecord, phases: Iterable[str]) -> Mapping[str, Any]:
    return {
        "server_round": record.server_round,
        "trained": "+".join(record.trainable),
        "clients": len(record.clients),
        "refused": len(record.refused),
        "train_loss": record.train_loss,
        **{name: getattr(record, name) for name in TRAFFIC},
        "seconds": sum(record.seconds.values()),
        **{f"seconds_{phase}": record.seconds.get(phase, 0.0) for phase in phases},
    }
