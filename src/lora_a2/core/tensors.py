"""The vector space of updates: named arrays that are added, scaled and measured. NumPy only.

An adapter, an update, a server's moments and what a client keeps are all this. Each operation is written once, here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Key = tuple[str, str]
"""(kind, name): the kind is a factor ("A", "B", "R"), "head", "base", or one that a method names."""
Array = npt.NDArray[Any]


class Tensors(Mapping[Key, Array]):
    """An immutable mapping (kind, name) → array, in a fixed order.

    Values and states are float32; sums of replies are float64 until the server's step casts them.
    """

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[Key, Array] | Iterable[tuple[Key, Array]] = ()) -> None:
        self._values: dict[Key, Array] = dict(values)

    def __getitem__(self, key: Key) -> Array:
        return self._values[key]

    def __iter__(self) -> Iterator[Key]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return "Tensors(" + ", ".join(f"{k}/{n} {list(v.shape)}" for (k, n), v in self._values.items()) + ")"

    def of(self, *kinds: str) -> Tensors:
        """Those of some kinds alone."""
        return Tensors({key: v for key, v in self._values.items() if key[0] in kinds})

    def map(self, change: Callable[[Array], Array]) -> Tensors:
        """`change` of every array."""
        return Tensors({key: change(v) for key, v in self._values.items()})

    def zip(self, other: Mapping[Key, Array], change: Callable[[Array, Array], Array]) -> Tensors:
        """`change` of every pair of arrays.

        Raises:
            ValueError: the names differ.
        """
        if self.keys() != other.keys():
            raise ValueError(f"Tensors {sorted(self)} and {sorted(other)} do not go together.")
        return Tensors({key: change(v, other[key]) for key, v in self._values.items()})

    def replaced(self, other: Mapping[Key, Array]) -> Tensors:
        """With the arrays of `other` in the place of those of the same name, and after them if there are none."""
        return Tensors({**self._values, **other})

    def renamed(self, kind: Callable[[str], str]) -> Tensors:
        """With other kinds."""
        return Tensors({(kind(k), name): v for (k, name), v in self._values.items()})

    def __add__(self, other: Mapping[Key, Array]) -> Tensors:
        return self.zip(other, np.add)

    def __sub__(self, other: Mapping[Key, Array]) -> Tensors:
        return self.zip(other, np.subtract)

    def __mul__(self, factor: float) -> Tensors:
        return self.map(lambda v: np.asarray(factor * v, v.dtype))

    __rmul__ = __mul__

    def astype(self, dtype: npt.DTypeLike) -> Tensors:
        """In another number type."""
        return self.map(lambda v: v.astype(dtype))

    def norm(self) -> float:
        """√ Σ v², over all arrays, in float64."""
        return float(np.sqrt(sum(float(np.sum(np.square(v, dtype=np.float64))) for v in self._values.values())))

    def largest(self) -> float:
        """The largest absolute value; 0 if there is none."""
        return max((float(np.abs(v).max(initial=0.0)) for v in self._values.values()), default=0.0)

    def finite(self) -> bool:
        """Whether every value is."""
        return all(bool(np.isfinite(v).all()) for v in self._values.values())
