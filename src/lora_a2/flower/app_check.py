"""What a server's app needs, loaded as its ServerApp loads it, without a SuperLink or a node."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from flwr.cli.config_utils import load_and_validate
from flwr.common.config import get_fused_config_from_dir, parse_config_args

from lora_a2.config.opening import with_task
from lora_a2.config.run import RunConfig
from lora_a2.config.setup import open_model
from lora_a2.data.written import DataSet
from lora_a2.errors import ConfigError, RunError
from lora_a2.flower.options import ServerOptions, read_options
from lora_a2.flower.server_app import NO_TESTS, server_data
from lora_a2.flower.simulated import LoadData
from lora_a2.runs.configured import config_of
from lora_a2.runs.directory import RunDirectory
from lora_a2.system.checks import NotChecked, writable
from lora_a2.system.locks import is_locked


class AppCheck:
    """The checks of the app in `folder`, with what `flwr run --run-config` will be given. Later ones use what earlier ones found."""

    def __init__(self, folder: Path | None, run_config: tuple[str, ...]) -> None:
        self._folder, self._run_config = folder, run_config
        self._options: tuple[RunConfig, ServerOptions] | None = None
        self._run: RunDirectory | None = None
        self._data: DataSet | None = None

    def configuration(self) -> str:
        """Its configuration, or that of the run that it resumes.

        Raises:
            NotChecked: no app is given.
            LoraA2Error: Flower would not take it, or an option is invalid.
        """
        if self._folder is None:
            raise NotChecked("give --app DIR, and --run-config as for 'flwr run'.")
        try:
            load_and_validate(self._folder / "pyproject.toml")
            overrides = parse_config_args(list(self._run_config) or None)
            values = get_fused_config_from_dir(self._folder.absolute(), overrides)
        except (ValueError, click.ClickException) as error:
            raise ConfigError(f"Flower does not take {self._folder}: {error}") from None
        config, options = read_options(values)
        if options.resume:
            self._run = RunDirectory.open(Path(options.resume).expanduser())
            config = config_of(self._run)
        self._options = config, options
        how = f"continues {self._run.path}" if self._run else f"{config.num_server_rounds} rounds of {config.method}"
        return f"{self._folder}: {how}, at least {options.min_train_nodes} nodes a round."

    def data(self) -> str:
        """The server's own data.

        Raises:
            NotChecked: there is no configuration.
            LoraA2Error: they cannot be used.
        """
        if self._options is None or self._folder is None:
            raise NotChecked("it needs the app.")
        config, options = self._options
        with _importable(self._folder):
            data, self._options = _loaded(config, options, _own_loader(self._folder))
        if options.evaluation == "server" and not len(data.test):
            raise ConfigError(NO_TESTS)
        self._data = data
        classes = f"{len(data.label_names)} classes" if data.label_names else "no classes"
        return f"{classes}, {len(data.train)} examples to train with and {len(data.test)} to test with on the server."

    def model(self) -> str:
        """The model.

        Raises:
            NotChecked: there are no data, on whose classes its head depends.
            LoraA2Error: it cannot be used.
        """
        if self._options is None or self._data is None:
            raise NotChecked("it needs the app and the data.")
        model = open_model(self._options[0], self._data.label_names)
        return f"{model.name} can be loaded; its fingerprint is {model.fingerprint}, and must be that of the nodes'."

    def state_folder(self) -> str:
        """Where the run goes.

        Raises:
            NotChecked: there is no configuration.
            RunError: a run is there already, or is in use.
            OSError: it cannot be written.
        """
        if self._options is None:
            raise NotChecked("it needs the app.")
        if self._run is not None:
            if is_locked(self._run.path):
                raise RunError(f"{self._run.path} is in use by another process: wait for it, or stop it.")
            return writable(self._run.path)
        given = self._options[0].output_dir
        if given is not None:
            RunDirectory.check_free(Path(given).expanduser())
        return writable(Path(given).expanduser() if given else Path("runs").absolute())


def _loaded(
    config: RunConfig, options: ServerOptions, load: LoadData | None
) -> tuple[DataSet, tuple[RunConfig, ServerOptions]]:
    known = with_task(config) if options.server_data and not options.label_names() else config
    return server_data(known, options, load), (known, options)


def _own_loader(folder: Path) -> LoadData | None:
    """The app's own `load_data`, which the module of its ServerApp imports; None: the configuration names the data."""
    config, _ = load_and_validate(folder / "pyproject.toml")
    module = str(config["tool"]["flwr"]["app"]["components"]["serverapp"]).partition(":")[0]
    try:
        found: LoadData | None = getattr(importlib.import_module(module), "load_data", None)
    except Exception as error:  # the app is its owner's: whatever it raises, it would raise in the run
        raise ConfigError(f"The app's {module} cannot be imported: {type(error).__name__}: {error}") from None
    return found


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Makes an app's modules importable, as Flower does."""
    sys.path.insert(0, str(folder.absolute()))
    try:
        yield
    finally:
        sys.path.remove(str(folder.absolute()))
