"""A run's rounds as a table, for who wants to look at them in pandas."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_a2.federation.records import RoundRecord
from lora_a2.runs.directory import RunDirectory

if TYPE_CHECKING:
    import pandas as pd

METRICS = ("accuracy", "macro_f1", "client_mean", "client_worst_tenth", "client_std")
TRAFFIC = ("uploaded_bytes", "downloaded_bytes", "uploaded_parameters", "downloaded_parameters")


def history(source: str | os.PathLike[str] | Iterable[RoundRecord]) -> pd.DataFrame:
    """One row a server round, of a run directory, finished or not, or of records as `simulate` yields them.

    Columns, all there in every table:
        server_round: from 1.
        trained: the factors that clients trained: "A", "B" or "A+B"; empty if they trained whole backbones.
        clients, refused: how many replies counted, and how many were left out.
        train_loss: mean over the cohort's examples.
        accuracy, macro_f1, client_mean, client_worst_tenth, client_std: fractions of 1, of the global model; NaN in rounds
            without evaluation, and of the last three where no client has a test example of its own.
        personal_accuracy: of the clients' own models, for methods that make such; else NaN.
        uploaded_bytes, downloaded_bytes, uploaded_parameters, downloaded_parameters: of this round, bytes as encoded; and
            the same with total_ in front: of all rounds up to this one.
        seconds: of the round, and seconds_PHASE for each phase that a round of these has (0 if one has not).

    Raises:
        RunError: there is no run directory, or it is damaged.
    """
    import pandas as pd

    records = _ledger(Path(source)) if isinstance(source, str | os.PathLike) else list(source)
    phases = list(dict.fromkeys(phase for record in records for phase in record.seconds))
    rows = [_row(record, phases) for record in records]
    columns = ("server_round", "trained", "clients", "refused", "train_loss", *METRICS, "personal_accuracy", *TRAFFIC)
    seconds = ("seconds", *(f"seconds_{phase}" for phase in phases))
    table = pd.DataFrame(rows, columns=[*columns, *seconds])
    whole = ("server_round", "clients", "refused", *TRAFFIC)
    numbers = ("train_loss", *METRICS, "personal_accuracy", *seconds)
    table = table.astype({"trained": object, **dict.fromkeys(whole, "int64"), **dict.fromkeys(numbers, "float64")})
    for place, name in enumerate(TRAFFIC, start=list(table.columns).index("seconds")):
        table.insert(place, f"total_{name}", table[name].cumsum())
    return table


def _ledger(path: Path) -> list[RoundRecord]:
    run = RunDirectory.open(path)
    return run.load_records()


def _row(record: RoundRecord, phases: Iterable[str]) -> Mapping[str, Any]:
    personal = record.metrics.get("personal") or {}
    return {
        "server_round": record.server_round,
        "trained": "+".join(record.trainable),
        "clients": len(record.clients),
        "refused": len(record.refused),
        "train_loss": record.train_loss,
        **{name: record.metrics.get(name) for name in METRICS},
        "personal_accuracy": personal.get("accuracy"),
        **{name: getattr(record, name) for name in TRAFFIC},
        "seconds": sum(record.seconds.values()),
        **{f"seconds_{phase}": record.seconds.get(phase, 0.0) for phase in phases},
    }
