"""The vector space of updates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_a2.core.tensors import Tensors


def random_tensors(seed: int) -> Tensors:
    rng = np.random.default_rng(seed)
    return Tensors(
        {
            ("A", "x"): rng.standard_normal((2, 5)),
            ("B", "x"): rng.standard_normal((3, 2)),
            ("head", "b"): rng.standard_normal(4),
        }
    )


@given(st.integers(0, 99), st.integers(0, 99), st.floats(-3, 3))
def test_it_is_a_vector_space_with_a_norm(one: int, other: int, factor: float) -> None:
    u, v = random_tensors(one), random_tensors(other)
    flat = lambda t: np.concatenate([x.ravel() for x in t.values()])  # noqa: E731
    np.testing.assert_allclose(flat(u + v), flat(u) + flat(v))
    np.testing.assert_allclose(flat((u - v) * factor), factor * (flat(u) - flat(v)))
    assert (u - v).norm() == pytest.approx(float(np.linalg.norm(flat(u) - flat(v))))
    assert u.largest() == np.abs(flat(u)).max()
    assert u.finite() and not u.map(lambda x: x * np.nan).finite()


def test_selection_renaming_and_replacing() -> None:
    u = random_tensors(0)
    assert set(u.of("A", "head")) == {("A", "x"), ("head", "b")}
    assert set(u.renamed(lambda kind: f"m:{kind}")) == {("m:A", "x"), ("m:B", "x"), ("m:head", "b")}
    assert u.replaced({("A", "x"): np.zeros((2, 5))})["A", "x"].any() == 0 and u["A", "x"].any()
    assert Tensors().largest() == 0 and Tensors().norm() == 0
    with pytest.raises(ValueError, match="do not go together"):
        u + u.of("A")


def test_the_number_type_is_kept_until_it_is_cast() -> None:
    u = random_tensors(0).astype(np.float32)
    assert {v.dtype for v in (0.5 * u).values()} == {np.dtype(np.float32)}
    assert {v.dtype for v in u.astype(np.float64).values()} == {np.dtype(np.float64)}
