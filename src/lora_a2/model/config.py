"""Options of the model: those of `load_model`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, model_validator

from lora_a2.model.heads import FORMER_HEADS
from lora_a2.model.names import spelled
from lora_a2.settings.options import MOST, Float, Int, Options, option, split_names
from lora_a2.settings.task import LABELLING, by_task


def _full_dtype(value: Any) -> Any:
    return {"fp32": "float32", "bf16": "bfloat16"}.get(value.casefold(), value) if isinstance(value, str) else value


def _spelled(name: str) -> str:
    return name if Path(name).exists() else spelled(name)


class ModelConfig(Options):
    """Which model, and what is made of it. Which one it is, where it is computed and what code it runs is each machine's own.

    "frozen" and "trained", the former values of `head`, mean a linear one, without and with `train_head`.
    """

    model: Annotated[str, AfterValidator(_spelled)] = option(
        by_task("all-MiniLM-L6-v2", "SmolLM2-135M-Instruct"),
        "Model",
        "A known model, a folder, or a model of the hub.",
        shown="all-MiniLM-L6-v2; SmolLM2-135M-Instruct with --task causal-lm",
    )
    target_modules: Annotated[tuple[str, ...], BeforeValidator(split_names)] | None = option(
        None,
        "Model",
        "Layers to adapt, by the ends of their names; all linear layers of the blocks if left out.",
        reach="nodes",
    )
    max_length: Int = option(
        by_task(128, 512),
        "Model",
        "Texts are cut after this many tokens.",
        shown="128; 512 with --task causal-lm",
        reach="nodes",
        ge=3,
        le=MOST,
    )
    trust_remote_code: bool = option(
        False,
        "Model",
        "Run Python that lies in the model's folder or repository. Only for models whose code you have read.",
        reach="nobody",
        app=False,  # each machine's owner decides
    )
    head: Literal["linear", "native"] = option(
        "linear",
        "Model",
        "The classification head: one layer on pooled token vectors, or that of the model's own architecture.",
        reach="nodes",
        effect=LABELLING,
    )
    train_head: bool = option(
        False, "Model", "Train the last layer of the classification head too.", reach="nodes", effect=LABELLING
    )
    head_scale: Float | None = option(
        None,
        "Model",
        "Scale of the frozen head; the model's own default if left out.",
        reach="nodes",
        effect=LABELLING,
        gt=0,
    )
    pooling: Literal["auto", "mean", "cls", "last"] = option(
        "auto", "Model", "How token vectors become one.", reach="nodes", effect=LABELLING
    )
    dtype: Annotated[Literal["auto", "float32", "bfloat16"], BeforeValidator(_full_dtype)] = option(
        "auto", "Model", "Number type of the model's computation (fp32 and bf16 mean the same).", reach="nodes"
    )
    load_in_4bit: bool = option(
        False,
        "Model",
        "Hold the adapted layers' frozen weights in 4 bits (NF4), as QLoRA does: less memory, slower. Needs the extra quantized.",
        reach="nodes",
    )
    device: str = option("auto", "Model", "auto, cpu, cuda, cuda:1 and so on.", reach="nobody")

    @model_validator(mode="before")
    @classmethod
    def _former_heads(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or values.get("head") not in FORMER_HEADS:
            return values
        trained = FORMER_HEADS[values["head"]]
        keys = ("train_head", "train-head")
        if not trained and any(values.get(key) for key in keys):  # Flower apps always have the key, false as a rule
            raise ValueError("head frozen is not trained; give head linear with train-head.")
        rest = {key: value for key, value in values.items() if key not in keys}
        return {**rest, "head": "linear", "train_head": trained}
