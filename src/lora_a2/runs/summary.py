"""What a finished run comes to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lora_a2.tasks.registry import get_task


@dataclass(frozen=True)
class RunSummary:
    """What a finished run comes to.

    `metrics` are those of the evaluation after round `kept_round`, whose model is the result, of the global model, by name, with
    the clients' figures of the primary one;
    `personal` those of the clients' own models on their own examples, if the method makes such.
    `full_finetuning_parameters` is what full fine-tuning would have uploaded in the same rounds from the same clients;
    `reduction_percent` how much less the run uploaded.
    `evaluation_bytes` were downloaded for evaluation on nodes alone. `exact_aggregation`: the effective weights were averaged
    exactly, by the method and with what the run put on top of it. `ended_early`: by `--early-stopping-patience`.
    `baselines`: the clients' values beside those of `--baselines` and `--personalize`, see `analysis.baselines.side_by_side`.
    """

    task: str
    metrics: Mapping[str, float | None]
    uploaded_parameters: int
    uploaded_bytes: int
    downloaded_parameters: int
    downloaded_bytes: int
    full_finetuning_parameters: int
    reduction_percent: float
    server_rounds: int
    num_clients: int
    seconds: float
    peak_memory_bytes: int
    method: str
    output_dir: str
    personal: Mapping[str, float | None] | None = None
    evaluation_bytes: int = 0
    exact_aggregation: bool = False
    ended_early: bool = False
    kept_round: int | None = None
    baselines: Mapping[str, Any] | None = None

    @property
    def score(self) -> float:
        """The task's primary metric, by which runs are compared: the personal models' if the method makes such."""
        value = (self.personal or self.metrics)[get_task(self.task).primary]
        assert value is not None, "every evaluation has it"
        return value

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for `json.dumps`; the metrics among them by their own names."""
        values = asdict(self)
        if values["baselines"] is None:
            del values["baselines"]
        own = {f"personal_{name}": value for name, value in (values.pop("personal") or {}).items()}
        return {**values.pop("metrics"), **own, **values}
