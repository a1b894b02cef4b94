"""How a model is prepared: the options of `load_model`, in one value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict, get_args

from lora_a2.core.types import FloatArray
from lora_a2.engine.packing import Pooling
from lora_a2.errors import ModelError
from lora_a2.model.heads import FORMER_HEADS, HEADS


@dataclass(frozen=True)
class ModelOptions:
    """How `load_model` prepares a model; names as on the command line.

    Attributes:
        target_modules: as in PEFT; None: all linear layers of the transformer blocks.
        head: "linear", one layer on the pooled token vectors; or "native", that of the model's own architecture, as
            `AutoModelForSequenceClassification` has it. "frozen" and "trained" mean a linear one, without and with `train_head`.
        train_head: whether clients train the head's last layer too; else it stays what it is for ever, as in the paper.
        head_scale: standard deviation of the seeded last layer's weights times the root of its width; None: the model's default.
        head_values: a head to use instead of the seeded one: `weight` (C, H) and `bias` (C,), float32; of a native head all its
            weights by their names in the whole model.
        pooling: "mean", "cls", "last", or "auto": the model's usual one.
        dtype: of the frozen weights: "float32", "bfloat16", or "auto": bfloat16 where it is faster.
        device: "cpu", "cuda", "cuda:1", … or "auto".
        load_in_4bit: whether the adapted layers' frozen weights are held in 4 bits (NF4), as QLoRA holds them.
        max_length: tokens after which a text is cut.
        seed: of the head.
        trust_remote_code: whether Python in the model's folder may run.
        system_prompt, chat_template, train_on: of a model that writes, see `EncodingOptions`.

    Raises:
        ModelError: a value that is not known.
    """

    target_modules: str | Sequence[str] | None = None
    head: str = "linear"
    train_head: bool = False
    head_scale: float | None = None
    head_values: dict[str, FloatArray] | None = None
    pooling: str = "auto"
    dtype: str = "auto"
    device: str = "auto"
    load_in_4bit: bool = False
    max_length: int = 128
    seed: int = 0
    trust_remote_code: bool = False
    system_prompt: str | None = None
    chat_template: str | None = None
    train_on: Literal["completion", "all"] = "completion"

    def __post_init__(self) -> None:
        if self.head in FORMER_HEADS:
            if self.train_head and not FORMER_HEADS[self.head]:
                raise ModelError("head 'frozen' is not trained: give head='linear' with train_head.")
            object.__setattr__(self, "train_head", FORMER_HEADS[self.head])
            object.__setattr__(self, "head", "linear")
        if self.head not in HEADS:
            raise ModelError(f"Unknown head {self.head!r}: choose one of {', '.join(HEADS)}.")
        if self.pooling not in ("auto", *get_args(Pooling)):
            raise ModelError(f"Unknown pooling {self.pooling!r}: choose one of auto, {', '.join(get_args(Pooling))}.")
        if self.train_on not in ("completion", "all"):
            raise ModelError(f"Unknown train_on {self.train_on!r}: choose completion or all.")
        if self.max_length < 1:
            raise ModelError(f"max-length is {self.max_length}: it must be at least 1.")

    @property
    def chosen_pooling(self) -> Pooling | None:
        """None: the model's usual one."""
        return next((known for known in get_args(Pooling) if known == self.pooling), None)


class ModelKeywords(TypedDict, total=False):
    """The fields of `ModelOptions`, for who gives some of them as keywords."""

    target_modules: str | Sequence[str] | None
    head: str
    train_head: bool
    head_scale: float | None
    head_values: dict[str, FloatArray] | None
    pooling: str
    dtype: str
    device: str
    load_in_4bit: bool
    max_length: int
    seed: int
    trust_remote_code: bool
    system_prompt: str | None
    chat_template: str | None
    train_on: Literal["completion", "all"]
