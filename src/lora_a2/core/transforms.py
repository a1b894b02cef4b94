"""What happens to an update between training and the wire: a record with a client half and a server half. NumPy only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lora_a2.core.types import Adapter, Factor, Mask


@dataclass(frozen=True)
class Sending:
    """What both halves know of an upload.

    Attributes:
        shared: the factors that travel.
        mask: the rank slices that do; None: all.
        learning_rate: of A and the head; that of B is `learning_rate_ratio` times it.
        rng: (purpose) → a generator for this client and round, from the run's seed.
    """

    shared: frozenset[Factor]
    mask: Mask | None
    learning_rate: float
    learning_rate_ratio: float
    rng: Callable[[str], np.random.Generator]


Half = Callable[[Adapter, Sending], Adapter]


def unchanged(update: Adapter, sending: Sending) -> Adapter:
    """The half of a transform that does nothing."""
    return update


@dataclass(frozen=True)
class Transform:
    """Clients apply the first halves in order, the server the second ones in reverse order.

    Attributes:
        client, server: the halves.
        density: the share of entries that it leaves; below 1, zeros do not travel, up or down.
        bounded: what it adds is in proportion to the update, so that replies out of proportion can be told.
        exact: the mean of what it makes is the mean of the updates.
        l1_clipping_norm: to which each step's gradient is clipped for it; None: not.
    """

    name: str
    client: Half
    server: Half = unchanged
    density: float = 1.0
    bounded: bool = True
    exact: bool = True
    l1_clipping_norm: float | None = None

    @property
    def sparse(self) -> bool:
        """Whether it leaves zeros that need not travel."""
        return self.density < 1


def sent(transforms: Sequence[Transform], update: Adapter, sending: Sending) -> Adapter:
    """An update as it leaves a client."""
    for transform in transforms:
        update = transform.client(update, sending)
    return update


def received(transforms: Sequence[Transform], update: Adapter, sending: Sending) -> Adapter:
    """An update as the server counts it."""
    for transform in reversed(transforms):
        update = transform.server(update, sending)
    return update
