"""MLflow: the store of MLFLOW_TRACKING_URI, else MLflow's default; experiment MLFLOW_EXPERIMENT_NAME, else "lora-a2".

Through a client of our own, so that nothing global is set and the caller's active run is left alone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

import mlflow
from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

from lora_a2.trackers.base import TrackedRun

_NAME = "mlflow"


class MLflow:
    """Metrics by server round; the configuration as parameters."""

    def __init__(self, run: TrackedRun) -> None:
        known = run.load(_NAME)
        # MLflow's default is relative to the working directory, which may be another one on resuming.
        uri = os.environ.get("MLFLOW_TRACKING_URI") or known.get("tracking_uri") or _absolute(mlflow.get_tracking_uri())
        self._client = MlflowClient(tracking_uri=uri)
        self._finished = False
        if "run_id" in known:
            self._id = str(known["run_id"])
            self._client.update_run(self._id, status="RUNNING")
            return
        self._id = self._client.create_run(self._experiment(), run_name=run.path.name).info.run_id
        run.save(_NAME, {"run_id": self._id, "tracking_uri": uri})
        self._client.log_batch(self._id, params=[Param(k, str(v)) for k, v in run.parameters.items()])

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "lora-a2"
        found = self._client.get_experiment_by_name(name)
        return str(self._client.create_experiment(name) if found is None else found.experiment_id)

    def log(self, server_round: int, values: Mapping[str, float]) -> None:
        """One metric a figure, its step the server round."""
        now = int(time.time() * 1000)
        self._client.log_batch(self._id, metrics=[Metric(k, v, now, server_round) for k, v in values.items()])

    def finish(self, summary: Mapping[str, float]) -> None:
        """Metrics without a step, and the run's end."""
        self.log(0, {f"summary/{name}": value for name, value in summary.items()})
        self._finished = True

    def close(self) -> None:
        """Marks the run as finished, or as killed if it is not complete."""
        self._client.set_terminated(self._id, "FINISHED" if self._finished else "KILLED")


def _absolute(uri: str) -> str:
    local = "sqlite:///"
    return local + os.path.abspath(uri.removeprefix(local)) if uri.startswith(local) else uri


open_tracker = MLflow
