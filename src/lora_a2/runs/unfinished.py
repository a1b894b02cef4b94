"""The model of a run, finished or not: what came of it, or what came of it so far."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lora_a2.config.run import RunConfig
from lora_a2.config.setup import open_model
from lora_a2.core.types import ServerState
from lora_a2.model.fingerprint import require_same
from lora_a2.model.pretrained import Model
from lora_a2.runs.configured import config_of
from lora_a2.runs.directory import RunDirectory
from lora_a2.runs.jobs import Setup, require_unchanged, save_result, set_up


def standing(run: RunDirectory) -> str | None:
    """What to say of a run that is not finished before its model is used; None if it is finished.

    Raises:
        RunError: no round is finished yet, or the checkpoint is damaged.
    """
    if run.is_finished:
        return None
    kept, done, total = run.kept_round(), run.rounds_done(), config_of(run).num_server_rounds
    best = "" if kept == done else f", the best of {done}"
    return f"{run.path} is not finished: this is its model after round {kept} of {total}{best}."


def state_of(run: RunDirectory, model: Model) -> ServerState:
    """The state after the round whose model is the run's: the last finished one, or the best if that is kept.

    Raises:
        RunError: there is none, the checkpoint is damaged, or it is of another model.
    """
    return run.load_kept(model.layout)[0]


def reopened(run: RunDirectory, config: RunConfig) -> tuple[Setup, ServerState]:
    """All that a run's configuration stands for, loaded again, and the state whose model is the run's.

    Raises:
        RunError: the data or the model are others by now, or there is no state.
        DataError, ModelError: they cannot be loaded any more.
    """
    setup = set_up(config)
    require_unchanged(run, setup)
    return setup, state_of(run, setup.model)


def model_of(run: RunDirectory, config: RunConfig) -> Model:
    """The model that a run trains, as it was at the start.

    Raises:
        RunError: it is another one by now.
        ModelError: it cannot be loaded.
    """
    recorded = run.environment()
    model = open_model(config, tuple(recorded["data"]["label_names"]))
    require_same(model.name, model.fingerprint, str(recorded["model_fingerprint"]), str(run.path))
    return model


@contextmanager
def result_folder(run: RunDirectory, trust_remote_code: bool = False) -> Iterator[Path]:
    """The folder of what came of a run; of an unfinished one a temporary folder with what came of it so far.

    Raises:
        RunError: no round is finished, the run is damaged, or its model is another one by now.
        ModelError: the model cannot be loaded.
    """
    if run.is_finished:
        yield run.result()
        return
    run.kept_round()  # before the model is loaded
    model = model_of(run, config_of(run, trust_remote_code))
    with tempfile.TemporaryDirectory(prefix="lora-a2-") as folder:
        save_result(folder, model, state_of(run, model))
        yield Path(folder)
