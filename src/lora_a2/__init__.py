"""lora-a2: federated LoRA fine-tuning of Transformers models.

The names below are loaded when first used, so that `import lora_a2` is cheap.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from lora_a2.system.machine import require_unix

if TYPE_CHECKING:
    from lora_a2.config.run import RunConfig
    from lora_a2.core.types import Adapter, Factors, ServerState
    from lora_a2.data.labelled import LabelledData
    from lora_a2.data.options import DataOptions
    from lora_a2.data.sources import load_data
    from lora_a2.data.writing import WrittenOptions, load_written
    from lora_a2.data.written import WrittenData
    from lora_a2.errors import (
        CodecError,
        ConfigError,
        DataError,
        LoraA2Error,
        ModelError,
        ReplyError,
        RunError,
    )
    from lora_a2.federation.loop import Plan
    from lora_a2.federation.observer import Observer, RunStart
    from lora_a2.federation.population import Client, make_clients
    from lora_a2.federation.records import RoundRecord
    from lora_a2.methods import METHODS, get_method
    from lora_a2.methods.base import Method
    from lora_a2.model.options import ModelOptions
    from lora_a2.model.pretrained import Model, load_model
    from lora_a2.runs.history import history
    from lora_a2.runs.jobs import launch, resume, save_result
    from lora_a2.runs.measuring import evaluate_run
    from lora_a2.runs.predict import Predictor, load_predictor
    from lora_a2.runs.summary import RunSummary
    from lora_a2.runs.writer import load_writer
    from lora_a2.simulation import make_plan, simulate
    from lora_a2.tasks.base import Evaluation

_HOMES = {
    "lora_a2.data.options": ("DataOptions",),
    "lora_a2.data.sources": ("load_data",),
    "lora_a2.data.writing": ("WrittenOptions", "load_written"),
    "lora_a2.errors": (
        "CodecError",
        "ConfigError",
        "DataError",
        "LoraA2Error",
        "ModelError",
        "ReplyError",
        "RunError",
    ),
    "lora_a2.runs.jobs": ("launch", "resume", "save_result"),
    "lora_a2.runs.summary": ("RunSummary",),
    "lora_a2.runs.measuring": ("evaluate_run",),
    "lora_a2.methods.base": ("Method",),
    "lora_a2.methods": ("METHODS", "get_method"),
    "lora_a2.model.pretrained": ("Model", "load_model"),
    "lora_a2.model.options": ("ModelOptions",),
    "lora_a2.runs.history": ("history",),
    "lora_a2.runs.predict": ("Predictor", "load_predictor"),
    "lora_a2.runs.writer": ("load_writer",),
    "lora_a2.federation.records": ("RoundRecord",),
    "lora_a2.federation.population": ("Client", "make_clients"),
    "lora_a2.federation.loop": ("Plan",),
    "lora_a2.federation.observer": ("Observer", "RunStart"),
    "lora_a2.config.run": ("RunConfig",),
    "lora_a2.data.labelled": ("LabelledData",),
    "lora_a2.data.written": ("WrittenData",),
    "lora_a2.tasks.base": ("Evaluation",),
    "lora_a2.simulation": ("make_plan", "simulate"),
    "lora_a2.core.types": ("Adapter", "Factors", "ServerState"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__version__ = version("lora-a2")
__all__ = [
    "METHODS",
    "Adapter",
    "Client",
    "CodecError",
    "ConfigError",
    "DataError",
    "DataOptions",
    "Evaluation",
    "Factors",
    "LabelledData",
    "LoraA2Error",
    "Method",
    "Model",
    "ModelError",
    "ModelOptions",
    "Observer",
    "Plan",
    "Predictor",
    "ReplyError",
    "RoundRecord",
    "RunConfig",
    "RunError",
    "RunStart",
    "RunSummary",
    "ServerState",
    "WrittenData",
    "WrittenOptions",
    "evaluate_run",
    "get_method",
    "history",
    "launch",
    "load_data",
    "load_model",
    "load_predictor",
    "load_writer",
    "load_written",
    "make_clients",
    "make_plan",
    "resume",
    "save_result",
    "simulate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lora_a2' has no attribute {name!r}")
    if name != "LoraA2Error":  # by which to catch what may be raised
        require_unix()
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
