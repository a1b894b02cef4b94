"""Who is told of a run while it goes on: the display, the trackers, a user's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lora_a2.federation.records import RoundRecord


@dataclass(frozen=True, kw_only=True)
class RunStart:
    """What is known of a run before its first round in this process, which is `first_round`.

    `clients_per_round` clients take part in each round; full fine-tuning would upload `full_finetuning_bytes_per_round`.
    """

    output_dir: str
    num_clients: int
    clients_per_round: int
    first_round: int
    num_server_rounds: int
    full_finetuning_bytes_per_round: int
    method: str
    model: str
    data: str


class Observer:
    """Is notified of a run's progress; each method does nothing unless overridden."""

    def started(self, start: RunStart) -> None:
        """Once, before the first round of this process."""

    def loaded(self, rows: Sequence[tuple[str, str]]) -> None:
        """Once, before `started`: what a run understood of its data, names and values in the order to be read."""

    def clients_done(self, server_round: int, done: int, cohort: int) -> None:
        """After each client, or chunk of clients, of a round."""

    def round_done(self, record: RoundRecord) -> None:
        """After each round; on resuming also for each round that was done before."""

    def baselines_done(self, done: int, total: int) -> None:
        """Before and after each of the models that a finished run is compared with."""

    def note(self, text: str) -> None:
        """A line that the user should see."""
