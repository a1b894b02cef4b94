"""What a node's owner allows: a TOML file on the node, and the last word whatever a server asks."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)

from lora_a2.config.run import RunConfig, load_config
from lora_a2.errors import ConfigError
from lora_a2.methods import get_method
from lora_a2.node.refusals import Reason, Refused
from lora_a2.settings.errors import kebab, one_line
from lora_a2.settings.options import Int
from lora_a2.system.text import plain


def _list(value: Any) -> Any:
    if isinstance(value, str):
        raise ValueError(f"{value!r} is a text; give a list such as [{value!r}].")
    return value


def _known_methods(names: tuple[str, ...]) -> tuple[str, ...]:
    try:
        return tuple(get_method(name).name for name in names)
    except ConfigError as error:
        raise ValueError(str(error)) from None


def _digests(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if not value or set(value) - set("0123456789abcdef"):
            raise ValueError(f"{value!r} is no fingerprint: 'lora-a2 node' logs the one of its model when it starts.")
    return values


Names = Annotated[tuple[str, ...], BeforeValidator(_list)]


class Policy(BaseModel):
    """What a node answers. An empty list allows everything.

    Raises:
        ConfigError: one line that names each wrong key, what was given and what is expected.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=kebab, populate_by_name=True)

    model_fingerprints: Annotated[Names, AfterValidator(_digests)] = Field(
        (), description="Models that may be trained, by the fingerprint of their weights."
    )
    methods: Annotated[Names, AfterValidator(_known_methods)] = Field((), description="Algorithms that may be used.")
    labels: Names = Field((), description="The class names that a run must have, in any order.")
    max_local_epochs: Int = Field(100, ge=1, description="Most local epochs in a round.")
    max_batch_size: Int = Field(4096, ge=1, description="Largest batch.")
    max_rank: Int = Field(1024, ge=1, description="Largest rank of the adapter.")
    max_rounds: Int = Field(10_000, ge=1, description="Most server rounds in a run.")
    max_seconds: Int = Field(7200, ge=1, description="Longest time that one request is worked on.")
    max_message: Int = Field(4096, ge=1, description="Largest message, in megabytes.")
    evaluation: Annotated[bool, Field(strict=True)] = Field(
        True, description="Whether the number of right answers on the node's test examples is told."
    )
    round_examples_to: Int = Field(
        1, ge=1, description="Numbers of examples are told as multiples of this; 1 tells them exactly."
    )

    def check(self, config: RunConfig, labels: Iterable[str]) -> None:
        """Compares a run with what is allowed.

        Raises:
            Refused: it is not allowed; the detail names the key.
        """
        for limit, field in _LIMITS.items():
            self._require(getattr(config, field) <= getattr(self, limit), field, getattr(config, field), limit)
        self._require(not self.methods or config.method in self.methods, "method", config.method, "methods")
        self._require(not self.labels or sorted(labels) == sorted(self.labels), "labels", list(labels), "labels")

    def check_round(self, server_round: int) -> None:
        """Compares the round of a download with what is allowed.

        Raises:
            Refused: there are not to be this many.
        """
        self._require(server_round <= self.max_rounds, "server round", server_round, "max_rounds")

    def check_model(self, fingerprint: str) -> None:
        """Compares a model with what is allowed.

        Raises:
            Refused: it is none of those named.
        """
        allowed = not self.model_fingerprints or fingerprint in self.model_fingerprints
        self._require(allowed, "model with the fingerprint", fingerprint, "model_fingerprints")

    def check_evaluation(self) -> None:
        """Lets an evaluation pass.

        Raises:
            Refused: none is answered.
        """
        self._require(self.evaluation, "kind", "evaluate", "evaluation")

    def stated(self, examples: int) -> int:
        """The number that is told for this many examples: a multiple of `round_examples_to`, and 0 only for none."""
        step = self.round_examples_to
        return max(round(examples / step), 1) * step if examples else 0

    def _require(self, allowed: bool, what: str, given: object, key: str) -> None:
        if not allowed:
            said = getattr(self, key)
            shown = str(said).lower() if isinstance(said, bool) else list(said) if isinstance(said, tuple) else said
            raise Refused(Reason.POLICY, f"{kebab(what)} {plain(given)}: the policy has {kebab(key)} = {plain(shown)}.")

    @model_validator(mode="wrap")
    @classmethod
    def _in_one_line(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(values)
        except ValidationError as error:
            raise ConfigError(one_line(error, list(map(kebab, cls.model_fields)))) from None


_LIMITS = {
    "max_local_epochs": "local_epochs",
    "max_batch_size": "batch_size",
    "max_rank": "r",
    "max_rounds": "num_server_rounds",
}
"""Key of a policy → the run's field that may not be larger."""

NO_LIMITS = Policy.model_validate(dict.fromkeys((*_LIMITS, "max_seconds"), sys.maxsize))
"""For clients of a simulation, whose owner is who runs it."""


def load_policy(path: Path) -> Policy:
    """The policy of a TOML file.

    Raises:
        ConfigError: the file cannot be read, or a key is unknown or wrong.
    """
    values = load_config(path)
    try:
        return Policy.model_validate(values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
