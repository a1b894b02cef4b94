"""`lora-a2 status`"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lora_a2.commands.common import examples, json_option, print_json, run_dir_argument

if TYPE_CHECKING:
    from lora_a2.runs.status import RunStatus

_MOST_NAMES = 12


@click.command("status", epilog=examples("lora-a2 status runs/helpdesk", "lora-a2 status runs/helpdesk --json"))
@run_dir_argument
@json_option
def command(run_dir: Path, as_json: bool) -> None:
    """Tell how far a run is: its round, when the last one ended, who replied, who was refused, the time left.

    It may be asked while the run goes on, also on a server of nodes, and disturbs nothing. The time left is that of a mean
    round for each that is missing.
    """
    from lora_a2.runs.status import run_status

    found = run_status(run_dir)
    if as_json:
        print_json(found.to_json())
        return
    rows = list(_rows(found))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        click.echo(f"{name:<{width}}  {value}")


def _rows(found: RunStatus) -> Iterator[tuple[str, str]]:
    from lora_a2.display.progress import human_time
    from lora_a2.system.text import plain
    from lora_a2.tasks.registry import measured

    yield "State", found.state
    yield "Round", f"{found.server_round} of {found.num_server_rounds}"
    if found.last_ended is not None and found.seconds_since is not None and found.mean_round_seconds is not None:
        yield "Last round ended", f"{found.last_ended} ({human_time(found.seconds_since)} ago)"
        yield "Mean round", human_time(found.mean_round_seconds)
        yield "Replied", _names(found.replied)
        yield "Refused", "nobody" if not found.refused else f"{len(found.refused)}"
        for name, reason in found.refused.items():
            yield f"  {plain(name)}", plain(reason)
    if found.refused_before:
        yield "Refused before", ", ".join(f"{plain(n)} ({count})" for n, count in found.refused_before.items())
    if (task := measured(found.metrics)) is not None:
        yield f"{task.shown.capitalize()}", f"{task.show(found.metrics[task.primary])} (round {found.evaluated})"
    if found.seconds_left is not None:
        yield "Time left", human_time(found.seconds_left)
    if found.next is not None:
        yield "Continue with", found.next


def _names(names: Sequence[str]) -> str:
    from lora_a2.system.text import plain

    more = f", and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return f"{len(names)}: " + ", ".join(map(plain, names[:_MOST_NAMES])) + more if names else "nobody"
