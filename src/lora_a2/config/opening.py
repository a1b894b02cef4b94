"""What of a configuration can be told before any model is loaded: its task, its data, where its files are, its learning rate.

Nothing here imports PyTorch, so that plans are made, data shown and mistakes found in a moment.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_a2.config.run import RunConfig
from lora_a2.data.chats import find_task
from lora_a2.data.finding import find_tables
from lora_a2.data.sources import BUILT_IN as BUILT_IN_DATA
from lora_a2.data.sources import load_data
from lora_a2.data.writing import load_written
from lora_a2.data.written import DataSet
from lora_a2.model.defaults import usual_learning_rate
from lora_a2.model.packages import find_packaged
from lora_a2.settings.task import CAUSAL_LM, CLASSIFICATION


def absolute_names(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Options, by snake_case or kebab-case key, with data and models that lie in `folder` by their absolute paths.

    Names of shipped data, of models in packages, and of a hub stay as they are.
    """
    found = dict(values)
    for key, value in values.items():
        path = folder / Path(str(value)).expanduser()
        if (
            (key == "data" and value not in BUILT_IN_DATA and path.exists())
            or (key == "model" and find_packaged(str(value)) is None and path.is_dir())
            or (key in ("test_data", "test-data", "output_dir") and value is not None)
        ):
            found[key] = str(path.absolute())
    return found


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """The configuration with every file and folder by its absolute path, so that a run can be taken up from anywhere."""
    named = {name: getattr(config, name) for name in ("data", "model", "test_data", "output_dir")}
    return config.model_copy(update=absolute_names(named, Path.cwd()))


def with_task(config: RunConfig) -> RunConfig:
    """The configuration with its task: the one given, or the one that options or the columns of the data are for.

    Defaults that depend on it are chosen anew.

    Raises:
        DataError: the data cannot be found or read, or their columns do not tell.
        ConfigError: an option that the task does not have.
    """
    if config.task is not None:
        return config
    given = config.model_dump(by_alias=True, include=config.model_fields_set)
    return RunConfig.model_validate({**given, "task": _found_task(config)})


def _found_task(config: RunConfig) -> str:
    if config.label_column is not None:
        return CLASSIFICATION
    if any((config.prompt_column, config.completion_column, config.messages_column)):
        return CAUSAL_LM
    return find_task(find_tables(config.data, config.file_options()).train.names) or CLASSIFICATION


def open_data(config: RunConfig) -> DataSet:
    """The data set of a configuration, whose task is known.

    Raises:
        DataError: it cannot be found, read, or used.
    """
    if config.task == CAUSAL_LM:
        return load_written(**config.data_options())
    return load_data(**config.data_options())


def learning_rate(config: RunConfig) -> float:
    """The learning rate of A in a run: the one given, or the default of method and model."""
    if config.learning_rate is not None:
        return config.learning_rate
    return usual_learning_rate(config.model, config.chosen_method())
