"""The values that travel between the rooms of the house. NumPy only; all of them are treated as immutable.

Shapes: r rank of an adapter, d_in and d_out the sides of a target module, N modules. Floats are float32.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from lora_a2.core.shown import count, few, shown
from lora_a2.core.tensors import Key, Tensors

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]

Factor = Literal["A", "B", "R"]
FACTORS: tuple[Factor, Factor] = ("A", "B")
"""Those that every adapter has."""
ALL_FACTORS: tuple[Factor, ...] = ("A", "B", "R")
"""Those that an adapter may have: R (r, r) stands between B and A for methods that train a core."""

Mask = Mapping[str, BoolArray]
"""Module name → bool (r,): the selected rank slices."""


@dataclass(frozen=True, slots=True)
class ModuleShape:
    """A target module: its name in the backbone and the sides of its weight (d_out, d_in)."""

    name: str
    d_out: int
    d_in: int

    def width(self, factor: Factor, rank: int) -> int:
        """Number of values in one rank slice of `factor` of an adapter of this rank."""
        return {"A": self.d_in, "B": self.d_out, "R": rank}[factor]

    def shape(self, factor: Factor, rank: int) -> tuple[int, int]:
        """A (r, d_in), B (d_out, r), R (r, r)."""
        width = self.width(factor, rank)
        return (width, rank) if factor == "B" else (rank, width)


def weight_name(module: str) -> str:
    """The name of a module's weight in the backbone, by which `BaseDelta` and `BaseUpdate` know it."""
    return f"{module}.weight"


@dataclass(frozen=True)
class Layout:
    """The ordered modules of an adapter and the tensors of a trained head; both ends derive it from the model.

    `head` is empty if the head is frozen. `dense` names the weights that full fine-tuning moves, with their shapes;
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
    """The factors of one module: A (r, d_in), B (d_out, r), and for some methods a core R (r, r) between them.

    What is added to the module's weight is scaling · B @ A, or scaling · B @ R @ A.
    """

    A: FloatArray
    B: FloatArray
    R: FloatArray | None = None

    def __repr__(self) -> str:
        return shown(self, *(f"{kind}={self.get(kind).shape}" for kind in self.kinds))

    @property
    def rank(self) -> int:
        """Number of rank slices r."""
        return int(self.A.shape[0])

    @property
    def kinds(self) -> tuple[Factor, ...]:
        """The factors that there are."""
        return FACTORS if self.R is None else ALL_FACTORS

    def get(self, factor: Factor) -> FloatArray:
        """A (r, d_in), B (d_out, r) or R (r, r).

        Raises:
            KeyError: there is no core.
        """
        if factor == "R":
            if self.R is None:
                raise KeyError("R")
            return self.R
        return self.A if factor == "A" else self.B

    def slices(self, factor: Factor) -> FloatArray:
        """The rank slices as rows: A (r, d_in), Bᵀ (r, d_out) as a view, or R (r, r)."""
        return self.B.T if factor == "B" else self.get(factor)

    @property
    def pair(self) -> Factors:
        """Two factors of the same product: A, and B @ R where there is a core."""
        return self if self.R is None else Factors(A=self.A, B=self.B @ self.R)


@dataclass(frozen=True)
class Adapter:
    """Module name → `Factors`, all of one rank, with the head where it is trained.

    The effective weight of a module is W + scaling · B @ A (or B @ R @ A) with scaling = lora_alpha / r.
    """

    factors: Mapping[str, Factors]
    lora_alpha: float
    head: Mapping[str, FloatArray] = field(default_factory=dict)

    def __repr__(self) -> str:
        return shown(
            self,
            f"rank={self.rank}",
            f"lora_alpha={self.lora_alpha:g}",
            count(len(self.factors), "module"),
            few([*self.head]),
        )

    @property
    def rank(self) -> int:
        """The rank r shared by all modules."""
        return next(iter(self.factors.values())).rank

    @property
    def scaling(self) -> float:
        """lora_alpha / r."""
        return self.lora_alpha / self.rank

    @property
    def kinds(self) -> tuple[Factor, ...]:
        """The factors that its modules have."""
        return next(iter(self.factors.values())).kinds

    @property
    def tensors(self) -> Tensors:
        """Its arrays by (factor, module), then the head's by ("head", name)."""
        found: dict[Key, FloatArray] = {(x, name): f.get(x) for name, f in self.factors.items() for x in f.kinds}
        return Tensors(found | {("head", name): v for name, v in self.head.items()})

    def with_tensors(self, tensors: Mapping[Key, FloatArray]) -> Adapter:
        """With the arrays of `tensors` in the place of its own of the same name; other names are not looked at."""
        factors = {
            name: Factors(*(None if x not in f.kinds else tensors.get((x, name), f.get(x)) for x in ALL_FACTORS))  # type: ignore[arg-type]
            for name, f in self.factors.items()
        }
        head = {name: tensors.get(("head", name), v) for name, v in self.head.items()}
        return Adapter(factors, self.lora_alpha, head)

    @property
    def pair(self) -> Adapter:
        """The same products from A and B alone."""
        if self.kinds == FACTORS:
            return self
        return replace(self, factors={name: f.pair for name, f in self.factors.items()})


BaseDelta = Mapping[str, FloatArray]
"""Name of a weight → how far it is from the pre-trained one, (d_out, d_in) for a module's; what is missing has not moved."""

BaseUpdate = Mapping[str, FloatArray | Factors]
"""A change of `BaseDelta`, weight by weight: the difference itself, or factors whose product B @ A (unscaled) it is."""


@dataclass(frozen=True, slots=True)
class ClientProfile:
    """What the server knows of a client: a description, not an actor.

    `rank` is the rank of the adapter it holds, `rank_budget` the number of ranks a module it may upload on average.
    """

    id: int
    rank: int
    rank_budget: int
    num_examples: int


def dense(change: FloatArray | Factors) -> FloatArray:
    """A weight's change (d_out, d_in) from either of its forms."""
    if not isinstance(change, Factors):
        return change
    product: FloatArray = change.B @ change.A
    return product


def moved_base(base: BaseDelta, update: BaseUpdate) -> BaseDelta:
    """`base` after `update`. Server and clients compute it from the same values, and so hold the same."""
    if not update:
        return base
    changes = {name: dense(change) for name, change in update.items()}
    return {**base, **{name: base[name] + c if name in base else c for name, c in changes.items()}}


FROM_SEED, EVERYTHING = 0, -1
"""In the place of the round that a client holds: what it derives from the seed, and nothing at all."""


@dataclass(frozen=True)
class Download:
    """What one client holds at the start of a server round (1-based), and what of it travels.

    Attributes:
        adapter: the whole of it, as the client will hold it.
        since: the round of the last download that the client is known to have decoded; FROM_SEED, EVERYTHING.
        changed: (factor, module) → bool (r,) and ("head", name) → bool (): what travels; None: all that ever does.
        base_update: the change of base weights that travels.
        base_whole: whether that is all that they ever moved, or what they moved since `since`.
        base_before, base_after: what the server calls the base weights on which the change builds, and those after it.
        digest: of what the client holds after it (`federation.holdings.digest`); 16 bytes.
    """

    server_round: int
    client: int
    shared: frozenset[Factor]
    adapter: Adapter
    since: int = EVERYTHING
    changed: Mapping[Key, BoolArray] | None = None
    base_update: BaseUpdate = field(default_factory=dict)
    base_whole: bool = False
    base_before: bytes = bytes(16)
    base_after: bytes = bytes(16)
    digest: bytes = bytes(16)


@dataclass(frozen=True)
class Upload:
    """What one client sends back: differences only.

    `update` holds, in every shared factor, the difference to the download in the selected rank slices and zero
    elsewhere; in a factor that is not shared it is zero. `mask` None stands for all slices. `base_update` holds what
    full fine-tuning changed, or a gradient of the base weights that a method asks for. In a `sparse` one entries that are
    zero were not sent.
    """

    server_round: int
    client: int
    shared: frozenset[Factor]
    num_examples: int
    train_loss: float
    mask: Mask | None
    update: Adapter
    base_update: BaseUpdate = field(default_factory=dict)
    sparse: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """Profile, download and upload of one client, as the server aggregates them."""

    profile: ClientProfile
    download: Download
    upload: Upload


@dataclass(frozen=True)
class ServerState:
    """All that the server carries from one round to the next; `server_round` rounds are done.

    The effective weight of a module is W + base_delta + base_update + scaling · B @ A.

    Attributes:
        seed: of the run, for methods whose server draws random numbers.
        base_delta: how far the frozen weights had moved when the last round began; only some methods move them.
        base_update: how the last round moved them.
        changed: in which round a value last changed: (factor, module) → int (r,), ("head", name) and ("base", weight) →
            int (); what is missing never has.
        held: client → the round of the last download that it is known to have decoded; who is missing holds what follows
            from the seed.
        client_ranks: ids of clients that changed their rank → the rank they hold now.
        extra: what else a method or a server optimizer keeps; stored without being understood.
    """

    server_round: int
    adapter: Adapter
    seed: int = 0
    base_delta: BaseDelta = field(default_factory=dict)
    base_update: BaseUpdate = field(default_factory=dict)
    changed: Mapping[Key, IntArray] = field(default_factory=dict)
    held: Mapping[int, int] = field(default_factory=dict)
    client_ranks: Mapping[int, int] = field(default_factory=dict)
    extra: Tensors = field(default_factory=Tensors)

    def __repr__(self) -> str:
        return shown(self, f"server_round={self.server_round}", f"adapter={self.adapter!r}", f"seed={self.seed}")

    @cached_property
    def base(self) -> BaseDelta:
        """How far the base weights have moved by now."""
        return moved_base(self.base_delta, self.base_update)


@dataclass(frozen=True)
class ClientState:
    """What a client keeps from round to round.

    Attributes:
        server_round: of the download that it decoded last; FROM_SEED before the first.
        adapter: as that download left it; None: what follows from the seed.
        base_delta: how far its base weights have moved.
        base_id: what the server calls these; 16 bytes.
        private: private factors, empty before its first round.
        extra: what else a method or a transform keeps; stored without being understood.
    """

    server_round: int = FROM_SEED
    adapter: Adapter | None = None
    base_delta: BaseDelta = field(default_factory=dict)
    base_id: bytes = bytes(16)
    private: Tensors = field(default_factory=Tensors)
    extra: Tensors = field(default_factory=Tensors)
