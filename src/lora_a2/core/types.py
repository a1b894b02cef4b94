"""The values that travel between the rooms of the house. NumPy only; all of them are treated as immutable.

Shapes: r rank of an adapter, d_in and d_out the sides of a target module, N modules. Floats are float32.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

Factor = Literal["A", "B"]
FACTORS: tuple[Factor, Factor] = ("A", "B")

Mask = Mapping[str, BoolArray]
"""Module name → bool (r,): the selected rank slices."""


@dataclass(frozen=True, slots=True)
class ModuleShape:
    """A target module: its name in the backbone and the sides of its weight (d_out, d_in)."""

    name: str
    d_out: int
    d_in: int

    def width(self, factor: Factor) -> int:
        """Number of values in one rank slice of `factor`."""
        return self.d_in if factor == "A" else self.d_out


def weight_name(module: str) -> str:
    """The name of a module's weight in the backbone, by which `Base` and `BaseUpdate` know it."""
    return f"{module}.weight"


@dataclass(frozen=True)
class Layout:
    """The ordered modules of an adapter and the tensors of a trained head; both ends derive it from the model.

    `head` is empty where the head is frozen. `dense` names the weights that full fine-tuning moves, with their shapes;
    empty for methods that train an adapter.
    """

    modules: tuple[ModuleShape, ...]
    head: tuple[tuple[str, tuple[int, ...]], ...] = ()
    dense: tuple[tuple[str, tuple[int, ...]], ...] = ()

    @property
    def base(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """The frozen weights that a method may move, with their shapes: `dense`, else those of the target modules."""
        return self.dense or tuple((weight_name(m.name), (m.d_out, m.d_in)) for m in self.modules)

    @cached_property
    def digest(self) -> bytes:
        """16 bytes that stand for this layout on the wire."""
        rows = [[m.name, m.d_out, m.d_in] for m in self.modules]
        parts = [rows, [[name, list(shape)] for name, shape in self.head]]
        if self.dense:
            parts.append([[name, list(shape)] for name, shape in self.dense])
        text = json.dumps(parts)
        return hashlib.blake2b(text.encode(), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class Factors:
    """The two factors of one module: A (r, d_in), B (d_out, r)."""

    A: FloatArray
    B: FloatArray

    @property
    def rank(self) -> int:
        """Number of rank slices r."""
        return int(self.A.shape[0])

    def get(self, factor: Factor) -> FloatArray:
        """A (r, d_in) or B (d_out, r)."""
        return self.A if factor == "A" else self.B

    def slices(self, factor: Factor) -> FloatArray:
        """The rank slices as rows: A (r, d_in), or Bᵀ (r, d_out) as a view."""
        return self.A if factor == "A" else self.B.T


@dataclass(frozen=True)
class Adapter:
    """Module name → `Factors`, all of one rank, with the head where it is trained.

    The effective weight of a module is W + scaling · B @ A with scaling = lora_alpha / r.
    """

    factors: Mapping[str, Factors]
    lora_alpha: float
    head: Mapping[str, FloatArray] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """The rank r shared by all modules."""
        return next(iter(self.factors.values())).rank

    @property
    def scaling(self) -> float:
        """lora_alpha / r."""
        return self.lora_alpha / self.rank


Base = Mapping[str, FloatArray]
"""Name of a weight → how far it is from the pre-trained one, (d_out, d_in) for a module's; what is missing has not moved."""

BaseUpdate = Mapping[str, FloatArray | Factors]
"""A change of `Base`, weight by weight: the difference itself, or factors whose product B @ A (unscaled) it is."""


@dataclass(frozen=True, slots=True)
class ClientProfile:
    """What the server knows of a client: a description, not an actor.

    `rank` is the rank of the adapter it holds, `rank_budget` the number of ranks a module it may upload on average.
    """

    id: int
    rank: int
    rank_budget: int
    num_examples: int


@dataclass(frozen=True)
class Download:
    """What one client receives at the start of a server round (1-based)."""

    server_round: int
    client: int
    trainable: frozenset[Factor]
    adapter: Adapter


@dataclass(frozen=True)
class Upload:
    """What one client sends back: differences only.

    `update` holds, in every trained factor, the difference to the download in the selected rank slices and zero
    elsewhere; in a factor that was not trained it is zero. `mask` None stands for all slices. `base_update` holds what
    full fine-tuning changed.
    """

    server_round: int
    client: int
    trainable: frozenset[Factor]
    num_examples: int
    train_loss: float
    mask: Mask | None
    update: Adapter
    base_update: BaseUpdate = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reply:
    """Profile, download and upload of one client, as the server aggregates them."""

    profile: ClientProfile
    download: Download
    upload: Upload


@dataclass(frozen=True)
class ServerState:
    """All that the server carries from one round to the next; `server_round` rounds are done.

    The effective weight of a module is W + base + base_update + scaling · B @ A. `base` is what the clients in `synced`
    hold, `base_update` what they have not received yet.

    Attributes:
        seed: of the run, for methods whose server draws random numbers.
        base: how far the frozen weights had moved when the last round began; only some methods move them.
        base_update: how the last round moved them.
        synced: ids of the clients that took part in the last round.
        client_ranks: ids of clients that changed their rank → the rank they hold now.
    """

    server_round: int
    adapter: Adapter
    seed: int = 0
    base: Base = field(default_factory=dict)
    base_update: BaseUpdate = field(default_factory=dict)
    synced: frozenset[int] = frozenset()
    client_ranks: Mapping[int, int] = field(default_factory=dict)
