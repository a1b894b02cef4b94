"""The configuration of a run: every group of options together, from which the command line and the keys of a TOML file come.

Keys are kebab-case in TOML, snake_case is understood too. Whatever is wrong is a `ConfigError` of one line. A
`RunConfig` is resolved: defaults that depend on other options are filled in.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, model_validator

from lora_a2.config.baselines import BaselineOptions
from lora_a2.config.effects import check_effects
from lora_a2.core.budgets import check_length
from lora_a2.data.config import ClientConfig, DataConfig
from lora_a2.data.file_options import FileOptions
from lora_a2.data.options import DataOptions
from lora_a2.data.partition import BY_LABEL
from lora_a2.data.writing import WrittenOptions
from lora_a2.errors import ConfigError
from lora_a2.federation.options import PlanOptions
from lora_a2.model.config import ModelConfig
from lora_a2.settings.errors import kebab
from lora_a2.settings.options import Effect, Options, marks_of, option, split_names
from lora_a2.settings.task import CAUSAL_LM, CLASSIFICATION, TaskChoice
from lora_a2.tasks.options import WritingOptions
from lora_a2.trackers import TRACKERS, known_trackers


def _known_trackers(names: tuple[str, ...]) -> tuple[str, ...]:
    try:
        return known_trackers(names)
    except ConfigError as error:
        raise ValueError(str(error)) from None


class RunOptions(Options):
    """What a run leaves, and where."""

    keep: Literal["best", "last"] = option(
        "last",
        "Run",
        "Which round's model is the result: that of the last one, or of the best that was evaluated.",
        reach="nobody",
        effect=Effect(
            lambda c: c.validation_fraction is not None, "--validation-fraction, so that the test set does not choose"
        ),
    )
    record_analysis: bool = option(
        True,
        "Run",
        "Record what 'lora-a2 analyze' reads: labels by client, selected ranks, how alike updates are.",
        reach="nobody",
    )
    output_dir: str | None = option(
        None,
        "Run",
        "The run directory; a new one in runs/ named after data, method and time if left out.",
        metavar="FOLDER",
        reach="nobody",
    )
    report_to: Annotated[tuple[str, ...], BeforeValidator(split_names), AfterValidator(_known_trackers)] | None = (
        option(
            None,
            "Run",
            f"Trackers that are told of every round: {', '.join(TRACKERS)}; each is an extra.",
            shown="none",
            reach="nobody",
        )
    )


# pydantic takes the fields of the last base first.
class RunConfig(
    RunOptions, BaselineOptions, PlanOptions, ModelConfig, WritingOptions, ClientConfig, DataConfig, TaskChoice
):
    """Everything that determines a run. None stands for "not given"; such defaults are described at the field.

    `part` gives one of the groups of options that this is made of.

    Raises:
        ConfigError: one line that names each wrong option, what was given and what is expected.
    """

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.partitioner == "natural" and self.client_column is None:
            raise ConfigError("client-column: the natural partitioner needs it; name the column of the clients.")
        if self.test_data is not None and self.test_fraction is not None:
            raise ConfigError("test-fraction: it has nothing to hold out beside test-data; give one of them.")
        if self.generate and self.task == CLASSIFICATION:
            raise ConfigError("generate: a classifier writes nothing; leave it out, or choose --task causal-lm.")
        if self.task == CAUSAL_LM and self.partitioner in BY_LABEL:
            raise ConfigError(
                f"partitioner: {self.partitioner} splits by labels, and a model that writes has none; choose iid, quantity or "
                "natural."
            )
        for role, column in (("label", self.label_column), ("client", self.client_column)):
            if self.text_column is not None and self.text_column == column:
                raise ConfigError(f"text-column: {column!r} is the {role}-column too; name another for one of them.")
        if self.test_data is not None and self.validation_fraction is not None:
            raise ConfigError("test-data: validation-fraction takes the place of the test set; give one of them.")
        check_effects(self)
        self.check_with(self.chosen_method())
        self.check_baselines(self.chosen_method())
        if isinstance(self.rank_budget, tuple) and self.num_clients is not None and self.partitioner != "natural":
            check_length(self.rank_budget, self.num_clients)
        return self

    def data_options(self) -> dict[str, Any]:
        """The arguments of `load_data`, or of `load_written` for a model that writes."""
        given = {**dict(self.part(DataConfig)), "seed": self.seed}
        kind = WrittenOptions if self.task == CAUSAL_LM else DataOptions
        return {"data": self.data, **{field.name: given[field.name] for field in fields(kind) if field.name in given}}

    def file_options(self) -> FileOptions:
        """How files of data are read."""
        return FileOptions(separator=self.separator, encoding=self.encoding, on_missing=self.on_missing)

    def split_options(self) -> dict[str, Any]:
        """The arguments that tell how examples are split over clients."""
        return {**dict(self.part(ClientConfig)), "seed": self.seed}


def fields_of(*groups: str) -> list[str]:
    """The names of the fields in these groups, in their order."""
    return [name for name, field in RunConfig.model_fields.items() if marks_of(field).group in groups]


def make_config(file_values: Mapping[str, Any], flag_values: Mapping[str, Any]) -> RunConfig:
    """The configuration of a file and of flags; flags win, and a flag that is None was not given.

    Raises:
        ConfigError: as `RunConfig`.
    """
    given = {key: value for key, value in flag_values.items() if value is not None}
    return RunConfig.model_validate({kebab(key): value for key, value in [*file_values.items(), *given.items()]})


def load_config(path: str | Path) -> dict[str, Any]:
    """The values of a TOML file by kebab-case key, not validated yet.

    Raises:
        ConfigError: the file cannot be read, is not TOML (the message has line and column), or has a key twice.
    """
    try:
        values = tomllib.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"Cannot read the configuration {str(path)!r}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"Cannot read the configuration {str(path)!r}: it is not UTF-8 text.") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {' '.join(str(error).split())}.") from None
    result: dict[str, Any] = {}
    for key, value in values.items():
        if kebab(key) in result:
            raise ConfigError(f"{path} gives {kebab(key)!r} twice, with hyphens and with underscores; keep one.")
        result[kebab(key)] = value
    return result


def dump_config(config: RunConfig) -> str:
    """TOML text that loads back as an equal configuration; values that are None are left out.

    So is leave to run a model's code: a file must not give it to who reads it later.
    """
    import tomlkit

    document = tomlkit.document()
    for key, value in config.model_dump(by_alias=True, exclude_none=True, exclude={"trust_remote_code"}).items():
        document.add(key, list(value) if isinstance(value, tuple) else value)
    return tomlkit.dumps(document)
