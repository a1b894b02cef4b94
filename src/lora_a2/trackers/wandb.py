"""Weights & Biases: project WANDB_PROJECT, else "lora-a2"; WANDB_MODE=offline keeps everything in the run directory."""

from __future__ import annotations

import os
from collections.abc import Mapping

import wandb

from lora_a2.trackers.base import TrackedRun

_NAME = "wandb"


class WeightsAndBiases:
    """Figures by server round; the configuration as the run's config."""

    def __init__(self, run: TrackedRun) -> None:
        self._finished = False
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "lora-a2",
            name=run.path.name,
            id=run.load(_NAME).get("id"),
            resume="allow",
            config=dict(run.parameters),
            dir=str(run.path),
        )
        run.save(_NAME, {"id": self._run.id})
        # Its own step counter may not go back; a round that is trained again after a crash would be dropped.
        self._run.define_metric("*", step_metric="server_round")

    def log(self, server_round: int, values: Mapping[str, float]) -> None:
        """One row of figures."""
        self._run.log({"server_round": server_round, **values})

    def finish(self, summary: Mapping[str, float]) -> None:
        """The run's summary."""
        self._run.summary.update({f"summary/{name}": value for name, value in summary.items()})
        self._finished = True

    def close(self) -> None:
        """Ends the run; one that is not complete ends as failed and can be continued."""
        self._run.finish(exit_code=0 if self._finished else 1)


open_tracker = WeightsAndBiases
