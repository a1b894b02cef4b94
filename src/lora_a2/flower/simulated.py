"""Clients of Flower's simulation engine: they run in the actor's process, which loads model and data once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lora_a2.config.opening import open_data
from lora_a2.config.run import RunConfig
from lora_a2.config.setup import open_clients
from lora_a2.data.written import DataSet
from lora_a2.federation.population import Client
from lora_a2.model.pretrained import Model
from lora_a2.node.participant import Participant, threads
from lora_a2.node.protocol import Request

LoadData = Callable[[RunConfig], DataSet]
"""Loads the whole data set of a simulation, before it is split over the clients."""

_participants: dict[tuple[object, str], Participant] = {}


def participant(load_data: LoadData | None, state_dir: str) -> Participant:
    """This process's participant, created on first use. `state_dir` is empty until there is state to keep."""
    key = load_data, state_dir
    if key not in _participants:
        threads(1)
        earlier = _participants.pop((load_data, ""), None)
        _participants.clear()  # of an earlier run in this process
        if earlier is None:
            earlier = Participant(_Split(load_data or open_data), Path())
        earlier.store = Path(state_dir)
        _participants[key] = earlier
    return _participants[key]


class _Split:
    """Returns each partition's share; the split is computed once for all of them."""

    def __init__(self, load_data: LoadData) -> None:
        self._load_data = load_data
        self._last: tuple[tuple[RunConfig, Model], tuple[Client, ...]] | None = None

    def __call__(self, config: RunConfig, request: Request, model: Model) -> Client:
        if self._last is None or self._last[0][0] != config or self._last[0][1] is not model:
            self._last = (config, model), open_clients(config, self._load_data(config), model)[0]
        return self._last[1][request.partition]
