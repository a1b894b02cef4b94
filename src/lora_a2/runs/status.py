"""How far a run is, from its directory alone: while it runs, in whatever process and with whatever driver, and afterwards.

Nothing is locked or written, so that it can be asked at any time. It speaks of committed rounds, as the checkpoint does.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from lora_a2.analysis.record import CLIENTS_FILE
from lora_a2.errors import RunError
from lora_a2.federation.records import RoundRecord
from lora_a2.runs.configured import config_of
from lora_a2.runs.directory import NODES_FILE, RunDirectory
from lora_a2.system.files import read_json_object
from lora_a2.system.invocation import program
from lora_a2.system.locks import is_locked

State = Literal["running", "stopped", "finished"]


@dataclass(frozen=True)
class RunStatus:
    """Where a run is.

    `replied` and `refused` are of the last finished round: clients by name, those refused with the reason. `refused_before`
    counts, client by client, the rounds before it in which a client was refused. Times are in seconds; `last_ended` is in ISO
    8601. They are None before the first round is done, `seconds_left` also if the run goes on no more. `metrics` are those of
    the last evaluation, of which `evaluated` is the round.
    """

    run_dir: str
    state: State
    server_round: int
    num_server_rounds: int
    last_ended: str | None
    seconds_since: float | None
    mean_round_seconds: float | None
    seconds_left: float | None
    replied: Sequence[str]
    refused: Mapping[str, str]
    refused_before: Mapping[str, int]
    evaluated: int | None
    metrics: Mapping[str, float]
    next: str | None

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for `json.dumps`."""
        return asdict(self)


def run_status(path: Path, now: datetime | None = None) -> RunStatus:
    """The status of the run in `path` at `now` (None: at present).

    Raises:
        RunError: it is not a run directory, or is damaged.
    """
    run = RunDirectory.open(path)
    total = config_of(run).num_server_rounds
    records = run.load_records()
    ended = _last_commit(run) if records else None
    state = _state(run)
    mean = sum(sum(record.seconds.values()) for record in records) / len(records) if records else None
    last = records[-1] if records else None
    named = _names(run)
    measured = next((record for record in reversed(records) if record.metrics), None)
    return RunStatus(
        run_dir=str(path),
        state=state,
        server_round=len(records),
        num_server_rounds=total,
        last_ended=None if ended is None else ended.astimezone().isoformat(timespec="seconds"),
        seconds_since=None if ended is None else max(0.0, ((now or datetime.now(UTC)) - ended).total_seconds()),
        mean_round_seconds=mean,
        seconds_left=None if mean is None or state != "running" else mean * (total - len(records)),
        replied=[] if last is None else [named.get(n, f"client-{n}") for n in sorted(c.id for c in last.clients)],
        refused={} if last is None else {named.get(k, f"client-{k}"): why for k, why in last.refused.items()},
        refused_before=_refused(records[:-1], named),
        evaluated=None if measured is None else measured.server_round,
        metrics={} if measured is None else _figures(measured),
        next=_next(run, state),
    )


def _state(run: RunDirectory) -> State:
    if is_locked(run.path):
        return "running"
    try:
        run.require_finished()
    except RunError:
        return "stopped"
    return "finished"


def _last_commit(run: RunDirectory) -> datetime:
    return datetime.fromtimestamp((run.checkpoint / "state.json").stat().st_mtime, UTC)


def _names(run: RunDirectory) -> dict[int, str]:
    """The clients' names, where the run knows them: nodes are numbers."""
    path = run.path / CLIENTS_FILE
    if not path.exists():
        return {}
    return {int(client["id"]): str(client["name"]) for client in read_json_object(path)["clients"]}


def _refused(records: Sequence[RoundRecord], named: Mapping[int, str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for record in records:
        for client in record.refused:
            name = named.get(client, f"client-{client}")
            counts[name] = counts.get(name, 0) + 1
    return counts


def _figures(record: RoundRecord) -> dict[str, float]:
    """The numbers of an evaluation, without those of single clients."""
    return {name: value for name, value in record.metrics.items() if isinstance(value, int | float)}


def _next(run: RunDirectory, state: State) -> str | None:
    """How to go on with a run that stopped; None if nothing is to be done."""
    if state != "stopped":
        return None
    folder = shlex.quote(str(run.path))
    if not (run.path / NODES_FILE).exists():
        return f"{program()} resume {folder}"
    if run.path.with_name(f"{run.path.name}-nodes").is_dir():  # what the nodes of a local deployment keep
        return f"{program()} flower local-deployment --resume {folder}"
    return f"flwr run APP CONNECTION --run-config \"resume='{run.path.absolute()}'\" --stream"
