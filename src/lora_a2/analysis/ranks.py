"""Which ranks were selected, by layer and module type (Figure 3 of the LoRA-A² paper)."""

from __future__ import annotations

import re

import pandas as pd

from lora_a2.analysis.record import RunRecord
from lora_a2.errors import RunError

_NUMBER = re.compile(r"(?:^|\.)(\d+)\.")


def place(module: str) -> tuple[int, str]:
    """Layer and type of a module: encoder.layer.3.output.dense is (3, "output.dense"); outside the blocks the layer is −1."""
    found = _NUMBER.search(module)
    return (int(found[1]), module[found.end() :]) if found else (-1, module)


def selected_ranks(run: RunRecord, client: int | None = None, server_round: int | None = None) -> pd.DataFrame:
    """Mean number of rank slices that a client uploaded of each module; index layer, a column for each module type.

    Over all clients and rounds, or those given. Modules of which nothing was ever uploaded count 0 if the run recorded
    its modules.

    Raises:
        RunError: the client did not take part, or there is no such round.
    """
    rounds = [r for r in run.rounds if server_round in (None, r.server_round)]
    rows = [c.selected for r in rounds for c in r.clients if client in (None, c.id)]
    if not rows:
        raise RunError(f"{run.path} has no upload of {_asked(client, server_round)}.")
    names = [m.name for m in run.modules] or list(dict.fromkeys(name for row in rows for name in row))
    long = pd.DataFrame(
        [(*place(name), sum(row.get(name, 0) for row in rows) / len(rows)) for name in names],
        columns=["layer", "type", "ranks"],
    )
    wide = long.pivot(index="layer", columns="type", values="ranks")
    return wide[list(dict.fromkeys(long["type"]))].rename_axis(columns=None)


def _asked(client: int | None, server_round: int | None) -> str:
    who = "any client" if client is None else f"client {client}"
    return who if server_round is None else f"{who} in round {server_round}"
