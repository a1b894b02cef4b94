"""How a client finds out which rank slices to train: probes, for methods that select. Each is one function and one row of `PROBES`.

A probe chooses every client's mask, and hands back the training that follows; the paper's is `epoch`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from lora_a2.core.types import Mask
from lora_a2.engine.work import Trained
from lora_a2.errors import ConfigError
from lora_a2.methods.base import Method
from lora_a2.settings.options import MOST, Int, Options, option

if TYPE_CHECKING:
    from lora_a2.engine.local import CohortTraining

ProbeName = Literal["epoch", "reuse", "gradient"]
DEFAULT_PROBE: ProbeName = "epoch"
DEFAULT_PROBE_BATCHES = 2


class ProbeOptions(Options):
    """Which probe, for methods that select."""

    probe: ProbeName | None = option(
        None,
        "Method",
        "How clients find the ranks to select: by an epoch of its own (the paper's), by the first local epoch, or by "
        "gradients at the start.",
        shown=DEFAULT_PROBE,
        reach="nodes",
    )
    probe_batches: Int | None = option(
        None,
        "Method",
        "Batches whose gradients the gradient probe takes.",
        shown=str(DEFAULT_PROBE_BATCHES),
        reach="nodes",
        ge=1,
        le=MOST,
    )


@dataclass(frozen=True)
class LocalRound:
    """What K clients do in a round, to be put together by a probe.

    Attributes:
        training: (purpose of the random order of examples, epochs, masks or None) → the clients' training from their starts.
        select: the clients as probed → their masks.
        local_epochs: E.
    """

    training: Callable[[str, int, Sequence[Mask] | None], CohortTraining]
    select: Callable[[Sequence[Trained]], list[Mask]]
    local_epochs: int


Probe = Callable[[LocalRound], "tuple[list[Mask], CohortTraining]"]


def epoch(work: LocalRound) -> tuple[list[Mask], CohortTraining]:
    """The paper's: an epoch with all rank slices, whose result is used only for scores; then E epochs from the start."""
    masks = work.select(work.training("probe", 1, None).run())
    return masks, work.training("train", work.local_epochs, masks)


def reuse(work: LocalRound) -> tuple[list[Mask], CohortTraining]:
    """The first of the E local epochs is the probe: E epochs in all instead of E + 1.

    After it, slices not selected are put back to the start; those selected keep their values and their AdamW moments and
    step count. AdamW works value by value, so that a selected slice goes on just as in E epochs without a mask; with a budget
    of all slices that is what the round is. Moments started anew would take a full step η against a single batch once more.
    """
    training = work.training("train", work.local_epochs, None)
    masks = work.select(training.run(1))
    training.narrow(masks)
    return masks, training


def gradient(work: LocalRound, batches: int = DEFAULT_PROBE_BATCHES) -> tuple[list[Mask], CohortTraining]:
    """Scores from one step by the gradients of the first batches of the probe's epoch, all taken at the start.

    The step is AdamW's, since the paper's probe moves by AdamW: on helpdesk its masks shared 0.87 to 0.99 of the budget with the
    paper's (2 batches, rounds 1 to 4), those of plain gradients 0.33 to 0.90 (rounds 1 and 2).
    """
    masks = work.select(work.training("probe", 1, None).descend(batches))
    return masks, work.training("train", work.local_epochs, masks)


PROBES: Mapping[ProbeName, Probe] = {"epoch": epoch, "reuse": reuse, "gradient": gradient}


def resolved_probe(method: Method, name: ProbeName | None, batches: int | None) -> dict[str, Any]:
    """The options `probe` and `probe_batches` with their defaults filled in; None if they mean nothing."""
    if method.select is None:
        return {"probe": None, "probe_batches": None}
    chosen = name or DEFAULT_PROBE
    counts = PROBES[chosen] is gradient
    return {"probe": chosen, "probe_batches": (batches or DEFAULT_PROBE_BATCHES) if counts else None}


def get_probe(method: Method, name: str | None = None, batches: int | None = None) -> Probe:
    """The probe called `name` (None: the paper's), for a method.

    Raises:
        ConfigError: there is no such probe, the method selects nothing, or `batches` is not for this probe.
    """
    if method.select is None and not (name is None and batches is None):
        raise ConfigError(f"probe: {method.name} selects no ranks and has nothing to probe for; leave it out.")
    chosen = next((probe for known, probe in PROBES.items() if known == (name or DEFAULT_PROBE)), None)
    if chosen is None:
        raise ConfigError(f"probe: {name!r} is not one of {', '.join(PROBES)}.")
    if batches is None:
        return chosen
    if chosen is not gradient:
        raise ConfigError("probe-batches: only the gradient probe counts batches; add probe gradient, or leave it out.")
    return partial(gradient, batches=batches)
