"""Every random number comes from (seed, purpose, server round, client); there is no global random state."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(seed: int, purpose: str, server_round: int = 0, client: int = 0) -> np.random.Generator:
    """A generator that these four values alone determine, on any machine and any driver."""
    key = f"{seed}/{purpose}/{server_round}/{client}".encode()
    entropy = int.from_bytes(hashlib.blake2b(key, digest_size=16).digest(), "little")
    return np.random.Generator(np.random.PCG64(entropy))
