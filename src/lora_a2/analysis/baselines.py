"""Does joining help? What each client would have had alone, has together, and would have with all data in one place.

`baselines.json` of a run directory holds, by kind and client, what was measured on the client's own test examples:
`local`, `tuned` (the result after epochs on the client's own data), `centralised`; and of which round's model the run's is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lora_a2.errors import RunError
from lora_a2.system.files import read_sealed
from lora_a2.tasks.base import PERSONAL, Task

BASELINES_FILE = "baselines.json"
TOGETHER = "together"
COLUMNS: Mapping[str, str] = MappingProxyType(
    {"local": "Alone", TOGETHER: "Together", "tuned": "After personal tuning", "centralised": "Centralised"}
)
"""Kind → the head of its column, in the order of the table."""


def read_baselines(run_dir: Path, server_round: int) -> dict[str, dict[str, dict[str, Any]]]:
    """Kind → client → what was measured, beside the model of this round; empty if there is nothing.

    Raises:
        RunError: the file is damaged.
    """
    path = run_dir / BASELINES_FILE
    if not path.is_file():
        return {}
    try:
        values = read_sealed(path)
    except RunError as error:
        raise RunError(f"{error} Remove it to have it made again: lora-a2 resume {run_dir}") from error
    found: dict[str, dict[str, dict[str, Any]]] = values["kinds"]
    return found if values["server_round"] == server_round else {}  # of before the run was given more rounds


def side_by_side(
    task: Task, found: Mapping[str, Mapping[str, Mapping[str, Any]]], metrics: Mapping[str, Any]
) -> dict[str, Any]:
    """The task's primary metric of every client, kind by kind, and the means over the clients that have all kinds.

    Args:
        task: of the run.
        found: see `read_baselines`.
        metrics: those of the run's result; of its clients' own models where the method makes such.
    """
    together = metrics.get(PERSONAL, metrics)
    values: dict[str, dict[str, float]] = {
        kind: {n: v[task.primary] for n, v in own.items()} for kind, own in found.items()
    }
    values[TOGETHER] = dict(together["per_client"])
    kinds = [kind for kind in COLUMNS if kind in values]
    rows = [
        {
            "client": name,
            "num_examples": together["per_client_examples"][name],
            **{kind: values[kind].get(name) for kind in kinds},
        }
        for name in values[TOGETHER]
    ]
    whole = [row for row in rows if all(row[kind] is not None for kind in kinds)]
    mean = {kind: sum(row[kind] for row in whole) / len(whole) if whole else None for kind in kinds}
    return {"metric": task.primary, "clients": rows, "num_compared": len(whole), "mean": mean}
