"""Shares of Dirichlet distributions, exact for any concentration. NumPy only."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray64 = npt.NDArray[np.float64]


def dirichlet_shares(num_classes: int, num_clients: int, alpha: float, rng: np.random.Generator) -> FloatArray64:
    """(C, K) rows ~ Dir(alpha · 1_K), each of sum 1.

    Gamma draws of a small shape underflow to 0 and their shares to 0/0. Here their logarithms are drawn, by
    G(a) = G(a + 1) · U^(1/a) in distribution (Marsaglia and Tsang 2000, section 6), so that any alpha > 0 works;
    as alpha → 0 the whole class goes to one client.
    """
    alpha = min(alpha, 1e12)  # beyond this the shares are equal to six digits, and the products would overflow
    gammas = np.log(rng.standard_gamma(alpha + 1, (num_classes, num_clients)))
    scaled = alpha * gammas - rng.standard_exponential((num_classes, num_clients))
    with np.errstate(over="ignore", under="ignore"):  # a gap that overflows is a share of exactly 0
        weights = np.exp((scaled - scaled.max(axis=1, keepdims=True)) / alpha)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float64)
