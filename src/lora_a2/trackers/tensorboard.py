"""TensorBoard: event files in `RUN_DIR/tensorboard`; show them with `tensorboard --logdir runs`."""

from __future__ import annotations

from collections.abc import Mapping

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from lora_a2.trackers.base import TrackedRun


class TensorBoard:
    """Scalars by server round, and the configuration with the run's figures in the HParams tab."""

    def __init__(self, run: TrackedRun) -> None:
        self._parameters = dict(run.parameters)
        # A round that was logged but not committed before a crash is trained again: its old figures are dropped.
        self._writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=run.first_round)

    def log(self, server_round: int, values: Mapping[str, float]) -> None:
        """One scalar a figure."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, server_round)
        self._writer.flush()

    def finish(self, summary: Mapping[str, float]) -> None:
        """`SummaryWriter.add_hparams` would open a second run for this."""
        figures = {f"summary/{name}": value for name, value in summary.items()}
        writer = self._writer._get_file_writer()  # type: ignore[no-untyped-call]
        for part in hparams(self._parameters, figures):  # type: ignore[no-untyped-call]
            writer.add_summary(part)
        for name, value in figures.items():
            self._writer.add_scalar(name, value)

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()


open_tracker = TensorBoard
