"""The weighted mean of a round's uploads, one reply at a time. NumPy only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lora_a2.core.algebra import rows
from lora_a2.core.tensors import Array, Key, Tensors
from lora_a2.core.types import BoolArray, Reply, ServerState, Upload, dense
from lora_a2.errors import ReplyError


@dataclass(frozen=True)
class Mean:
    """Σ_k w_k · update_k with w_k = n_k / Σ n_j.

    Attributes:
        update: float64, of the factors, the head and base weights that were sent.
        uploaded: in a shape that goes with the values: whether anybody sent something there.
    """

    update: Tensors
    uploaded: Mapping[Key, BoolArray]


def mean(state: ServerState, replies: Iterable[Reply]) -> Mean:
    """The weighted mean of updates; a rank slice that a client did not send counts as zero from that client.

    Accumulates in float64, one reply at a time, so memory does not grow with the cohort. With one factor trained and the
    other shared and frozen this is the exact weighted mean of the clients' B·A; with both it is not (discordance).

    Raises:
        ReplyError: there is no reply, or the examples add up to zero.
    """
    sums: dict[Key, Array] = {}
    uploaded: dict[Key, BoolArray] = {}
    total = 0
    for reply in replies:
        examples = reply.upload.num_examples
        total += examples
        for key, values, sent in sent_values(reply.upload):
            if key not in sums:
                sums[key] = np.zeros(values.shape, np.float64)
            sums[key] += np.float64(examples) * values
            uploaded[key] = uploaded[key] | sent if key in uploaded else sent
    if total <= 0:
        raise ReplyError("No examples to weigh the replies by: the round had no usable reply.")
    return Mean(Tensors({key: values / total for key, values in sums.items()}), uploaded)


def sent_values(upload: Upload) -> Iterator[tuple[Key, Array, BoolArray]]:
    """What an upload carries, and where."""
    everywhere = np.ones((), np.bool_)
    for (kind, name), values in upload.update.tensors.items():
        if kind == "head":
            yield (kind, name), values, everywhere
        elif kind in upload.shared:
            keep = everywhere if upload.mask is None else rows(upload.mask[name], kind)
            yield (kind, name), values, values != 0 if upload.sparse else keep
    for name, change in upload.base_update.items():
        yield ("base", name), dense(change), everywhere


def collect(state: ServerState, replies: Iterable[Reply]) -> Sequence[Reply]:
    """All replies, for methods whose server needs them at once."""
    return list(replies)


def example_weights(replies: Sequence[Reply]) -> list[float]:
    """w_k = n_k / Σ n_j.

    Raises:
        ReplyError: there is no reply, or the examples add up to zero.
    """
    total = sum(reply.upload.num_examples for reply in replies)
    if total <= 0:
        raise ReplyError("No examples to weigh the replies by: the round had no usable reply.")
    return [reply.upload.num_examples / total for reply in replies]
