"""What the objective measures of examples, computed by the workers of a pool."""

from __future__ import annotations

import numpy as np

from lora_a2.core.types import Adapter, BaseDelta, FloatArray
from lora_a2.engine.network import Network
from lora_a2.engine.pool import Pool
from lora_a2.engine.work import TokenizedExamples

_CHUNK = 256
"""Examples of one piece of work; fixed, so that results do not depend on the number of workers."""


def measure(pool: Pool, adapter: Adapter | None, base: BaseDelta, examples: TokenizedExamples) -> FloatArray:
    """(n, W) float32, for n examples in their order, of the adapter on base weights moved by `base`."""
    order = np.argsort([len(ids) for ids in examples.input_ids], kind="stable")
    chunks = [order[i : i + _CHUNK] for i in range(0, len(order), _CHUNK)]

    def work(network: Network, rows: np.ndarray) -> FloatArray:
        network.set_base(base)
        return network.measure(adapter, examples.take(rows))

    found = np.concatenate(list(pool.map(work, chunks)))
    result = np.empty_like(found)
    result[order] = found
    return result
