"""How far a client's reply may move the state: what AdamW can do at most, and what the others' did of late.

AdamW moves a value by η · m̂ / √v̂ a step, whatever the gradient's size, and steps in directions that vary add up as a
random walk does, to their square root. So movement is measured in learning rates and √steps: honest clients with 1 example and
with thousands, in rounds of A and of B, then come out near 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from lora_a2 import codec
from lora_a2.core.algebra import add, difference, turned_back
from lora_a2.core.types import Adapter, Download, FloatArray, ServerState, Upload, dense
from lora_a2.errors import ReplyError
from lora_a2.federation.agreement import Federation
from lora_a2.federation.records import RoundRecord

FARTHEST_STEP = 0.1 / math.sqrt(0.001 * (1 - 0.9**2 / 0.999))
"""|m̂ / √v̂| ≤ (1 − β₁) / √((1 − β₂)(1 − β₁² / β₂)) = 7.27 by the inequality of Cauchy and Schwarz; ordinary steps are below 1."""
LARGEST_GROWTH = 1000.0
"""A reply, and a new state, may have a value this many times the largest of what it starts from; honest ones stay far below."""
WINDOW = 5
"""Rounds over which the median is taken."""
CREDIBLE = 100
"""A client is taken to have made no more steps than one with this many times the median number of examples."""
LARGEST_SHARE = 3
"""A client counts for no more than this many times the examples of the second largest."""

LARGEST_GRADIENT = 1e3
"""No mean gradient by a weight is larger; honest ones of cross-entropy stay below 10."""

_LEAST_START = 1e-3
_RANDOM_WALK = 1.0
_LARGEST_WEIGHT = 100.0
_ROUNDING = 2.0**-23


def local_steps(federation: Federation, num_examples: int) -> int:
    """Steps of AdamW that a client with this many examples makes in a round."""
    return federation.training.steps(num_examples, federation.local_epochs)


def trained(federation: Federation, download: Download, upload: Upload) -> Upload:
    """The upload as training alone would have made it: for methods whose clients rotate, turned back."""
    if not federation.method.rotates:
        return upload
    start = download.adapter
    back = turned_back(add(start, upload.update), start)
    return replace(upload, update=difference(back, start, upload.shared))


def update_norm(federation: Federation, upload: Upload, steps: int) -> float:
    """Root mean square of the values that travelled, each over its learning rate, by √steps; 0 if none did."""
    total, count = 0.0, 0
    for values, rate, _ in _travelled(federation, upload, upload.update):
        total += float(np.sum(np.square(values, dtype=np.float64))) / rate**2
        count += int(np.count_nonzero(values)) if upload.sparse else values.size
    return float(f"{math.sqrt(total / max(count, 1) / steps):.6g}")


def check_reach(federation: Federation, download: Download, upload: Upload, steps: int) -> None:
    """Refuses what no local training can have made, value by value.

    With weight decay λ a value w moves by η (|m̂ / √v̂| + λ |w|) a step at most.

    Raises:
        ReplyError: a value moved farther.
    """
    decay = federation.training.weight_decay
    for values, rate, start in _travelled(federation, upload, download.adapter):
        largest = _LARGEST_WEIGHT if start is None else float(np.abs(start).max(initial=0.0))
        reached = largest + FARTHEST_STEP * rate * steps
        limit = 1.05 * steps * (rate * (FARTHEST_STEP + decay * reached) + _ROUNDING * reached)
        moved = float(np.abs(values).max(initial=0.0))
        if moved > limit:
            raise ReplyError(
                f"Client {upload.client} moved a value by {moved:.3g}; in {steps} local steps at the learning rate {rate:g} no "
                f"value moves by more than {limit:.3g}."
            )


def largest_move(upload: Upload) -> float:
    """The largest absolute value of an upload."""
    update = upload.update
    return max(_largest([*_factors(update), *update.head.values()]), _largest(map(dense, upload.base_update.values())))


def check_size(federation: Federation, download: Download, upload: Upload, steps: int) -> None:
    """Refuses what is out of all proportion, both to the adapter (or the head) that the client started from and to what its
    steps can do; looked at in every run, so that no reply leaves a state from which nobody can go on.

    Raises:
        ReplyError: a value moved by more than LARGEST_GROWTH times the largest one.
    """
    if not federation.bounded:
        return
    update, start = upload.update, download.adapter
    pairs = (
        (max(_largest(_factors(update)), _largest(map(dense, upload.base_update.values()))), _largest(_factors(start))),
        (_largest(update.head.values()), _largest(start.head.values())),
    )
    settings = federation.training_in(download.server_round)
    stepped = FARTHEST_STEP * steps * settings.learning_rate * max(1.0, settings.learning_rate_ratio)
    for size, before in pairs:
        limit = LARGEST_GROWTH * max(before, _LEAST_START) + stepped
        if size > limit:
            raise ReplyError(
                f"Client {upload.client} moved a value by {size:.3g}; more than {limit:.3g}, {LARGEST_GROWTH:.0f} times the "
                "largest that it was sent, is out of all proportion."
            )


def check_gradients(upload: Upload) -> None:
    """Refuses gradients that are out of all proportion.

    Raises:
        ReplyError: a value is larger than LARGEST_GRADIENT.
    """
    size = _largest(map(dense, upload.base_update.values()))
    if size > LARGEST_GRADIENT:
        raise ReplyError(
            f"Client {upload.client} sent a gradient of {size:.3g}; more than {LARGEST_GRADIENT:.0f} is out of all proportion."
        )


def usual_norm(records: Sequence[RoundRecord]) -> float:
    """The median `update_norm` of the replies of the last rounds, but at least that of whole steps in random directions, 1,
    which is also what is usual before the first round."""
    norms = [c.update_norm for record in records[-WINDOW:] for c in record.clients if c.update_norm]
    return max(_RANDOM_WALK, float(np.median(norms))) if norms else _RANDOM_WALK


def check_usual(client: int, norm: float, usual: float, ratio: float) -> None:
    """Refuses a reply that moved farther than `ratio` times what is usual.

    Raises:
        ReplyError: it did.
    """
    if norm > ratio * usual:
        raise ReplyError(
            f"Client {client} moved {norm:.3g} learning rates per root of its local steps; at most {ratio * usual:.3g}, "
            f"{ratio:g} times what is usual in this run, are accepted (max-update-ratio)."
        )


def check_state(federation: Federation, old: ServerState, new: ServerState, moved: float) -> None:
    """Refuses a new state that the next round could not start from; `moved` is the largest value of the replies in it.

    Raises:
        ReplyError: it is not finite, does not fit the wire's value type, or is out of all proportion to the old one.
    """
    adapter, method = new.adapter, federation.method
    sent = adapter.tensors.of(*method.travels, "head").values()
    held = _factors(adapter)
    weights = [dense(change) for change in new.base_update.values()]
    if not (adapter.tensors.finite() and new.extra.finite() and all(np.isfinite(values).all() for values in weights)):
        raise ReplyError("The new state is not finite.")
    if not all(codec.fits(values, federation.wire_dtype) for values in sent):
        raise ReplyError(f"The new state has values that overflow {federation.wire_dtype}; use fp32 on the wire.")
    size = _largest([*held, *weights, *adapter.head.values()])
    before = max(_largest([*_factors(known), *known.head.values()]) for known in (old.adapter, federation.initial))
    if federation.bounded and size > LARGEST_GROWTH * max(before, moved, _LEAST_START):
        raise ReplyError(
            f"The new state has a value of {size:.3g}; the largest of the old one is {before:.3g}, that of the replies {moved:.3g}."
        )


def fair_share(counts: Sequence[int]) -> int | None:
    """The largest number of examples for which a client counts: LARGEST_SHARE times that of the second largest; None for fewer
    than three clients, if nobody can tell who is out of proportion.

    So one client that states any number does not decide alone; two that agree may. On Dirichlet splits of BANKING77 and 20
    Newsgroups with α = 0.01 the largest client has up to 1.9 times as many as the second.
    """
    return None if len(counts) < 3 else LARGEST_SHARE * sorted(counts)[-2]


def credible_examples(counts: Sequence[int]) -> int:
    """The largest number of examples that is believed for a number of steps: CREDIBLE times the median."""
    return max(1, int(CREDIBLE * float(np.median(counts))))


def _travelled(
    federation: Federation, upload: Upload, start: Adapter
) -> Iterator[tuple[FloatArray, float, FloatArray | None]]:
    """Each block of values that travelled, its learning rate, and the values of `start` in its place (None: not known)."""
    settings = federation.training_in(upload.server_round)
    rate = settings.learning_rate
    rates = {"A": rate, "B": rate * settings.learning_rate_ratio, "R": rate}
    for factor in sorted(upload.shared):
        for name, change in upload.update.factors.items():
            values, held = change.slices(factor), start.factors[name].slices(factor)
            yield values if upload.mask is None else values[upload.mask[name]], rates[factor], held
    for name, values in upload.update.head.items():
        yield values, rate, start.head[name]
    for weight in upload.base_update.values():
        yield dense(weight), rate, None


def _factors(adapter: Adapter) -> list[FloatArray]:
    return list(adapter.tensors.of(*adapter.kinds).values())


def _largest(arrays: Iterable[FloatArray]) -> float:
    """The largest absolute value; 0 if there is none."""
    return max((float(np.abs(values).max(initial=0.0)) for values in arrays), default=0.0)
