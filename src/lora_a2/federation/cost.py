"""What a run will send, before it runs: parameters and bytes up and down, from the layout alone.

Which rank slices a method with `select` uploads depends on the data. The estimate is the expected value under uniformly
chosen slices; the bounds hold whatever is chosen. Ranks that clients prune on their own are counted as if they kept them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from lora_a2.codec import ValueType, base_size, download_parameters, download_size, upload_parameters, upload_size
from lora_a2.core.sampling import cohort_size
from lora_a2.core.types import Factor, Layout
from lora_a2.errors import ConfigError
from lora_a2.methods.base import Method


@dataclass(frozen=True, slots=True)
class Cost:
    """The traffic of a whole run, all server rounds and clients together.

    Attributes:
        clients_per_round: size of a cohort.
        uploaded_parameters: values that clients send, as the paper counts them; the expected number where it depends
            on which clients and which rank slices are chosen, each drawn uniformly.
        uploaded_parameters_min: if always the narrowest slices of the clients that send least are chosen.
        uploaded_parameters_max: if always the widest slices of the clients that send most are.
        uploaded_bytes: the frames that carry them, with header, bitmap and checksum; `_min`, `_max` likewise.
        downloaded_parameters: values that the server sends, expected over the clients chosen.
        downloaded_bytes: the frames that carry them.
        full_finetuning_parameters: what as many clients would upload in as many rounds without LoRA.
    """

    clients_per_round: int
    uploaded_parameters: int
    uploaded_parameters_min: int
    uploaded_parameters_max: int
    uploaded_bytes: int
    uploaded_bytes_min: int
    uploaded_bytes_max: int
    downloaded_parameters: int
    downloaded_bytes: int
    full_finetuning_parameters: int

    @property
    def reduction_percent(self) -> float:
        """How much less is uploaded than in full fine-tuning, in percent."""
        return 100 * (1 - self.uploaded_parameters / self.full_finetuning_parameters)


@dataclass(frozen=True, slots=True)
class _Total:
    """A quantity summed over a run, and its bounds."""

    expected: Fraction = Fraction(0)
    least: int = 0
    greatest: int = 0

    def plus(self, rounds: int, cohort: int, clients: Sequence[tuple[int, int, int]]) -> _Total:
        """Adds `rounds` rounds of `cohort` clients, drawn from `clients`, each (expected, least, greatest)."""
        mean = Fraction(sum(c[0] for c in clients), len(clients))
        least = sum(sorted(c[1] for c in clients)[:cohort])
        greatest = sum(sorted((c[2] for c in clients), reverse=True)[:cohort])
        return _Total(
            self.expected + rounds * cohort * mean, self.least + rounds * least, self.greatest + rounds * greatest
        )


def estimate_cost(
    layout: Layout,
    method: Method,
    *,
    r: int,
    rank_budgets: Sequence[int],
    num_server_rounds: int,
    full_parameters: int,
    fraction_train: float = 1.0,
    dtype: ValueType = "fp32",
) -> Cost:
    """The cost of a run of `method`.

    Args:
        layout: modules and trained head.
        method: with a `select`, every client holds rank `r` and its rank budget limits what it uploads; without, its
            rank budget is the rank it holds, and uploads whole.
        r: the global rank; used by methods with a `select` only.
        rank_budgets: one a client.
        num_server_rounds: odd and even rounds may train different factors, and so differ in size.
        full_parameters: number of weights of the whole model.
        fraction_train: share of the clients in a round.
        dtype: value type on the wire, both ways.

    Raises:
        ConfigError: a number is out of its range, or the rank budgets differ and the method wants them equal.
    """
    _check(method, r, rank_budgets, num_server_rounds, fraction_train)
    cohort = cohort_size(len(rank_budgets), fraction_train)
    parameters, size = _Total(), _Total()
    for shared, rounds in Counter(map(method.shared, range(1, num_server_rounds + 1))).items():
        each = {b: _uploads(layout, method, r, b, shared, dtype, full_parameters) for b in set(rank_budgets)}
        parameters = parameters.plus(rounds, cohort, [each[budget][0] for budget in rank_budgets])
        size = size.plus(rounds, cohort, [each[budget][1] for budget in rank_budgets])

    ranks = [r if method.select else budget for budget in rank_budgets]
    down = [_adapter(layout, method, rank, method.travels, dtype) for rank in ranks]
    base = _base_downloads(layout, method, ranks, cohort, num_server_rounds, full_parameters)
    messages = num_server_rounds * cohort
    return Cost(
        clients_per_round=cohort,
        uploaded_parameters=round(parameters.expected),
        uploaded_parameters_min=parameters.least,
        uploaded_parameters_max=parameters.greatest,
        uploaded_bytes=round(size.expected),
        uploaded_bytes_min=size.least,
        uploaded_bytes_max=size.greatest,
        downloaded_parameters=round(Fraction(messages * sum(d[0] for d in down), len(ranks)) + base[0]),
        downloaded_bytes=round(Fraction(messages * sum(d[1] for d in down), len(ranks)) + base[1]),
        full_finetuning_parameters=messages * full_parameters,
    )


def _uploads(
    layout: Layout, method: Method, r: int, budget: int, shared: frozenset[Factor], dtype: ValueType, full: int
) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Parameters and bytes of one client's upload, each (expected, least, greatest)."""
    if not method.select:
        parameters, size = _adapter(layout, method, budget, shared, dtype)
        extra = full if method.full else 0
        parameters, size = parameters + extra, size + base_size(extra, layout, dtype)
        return (parameters,) * 3, (size,) * 3
    expected, least, greatest = _choices(layout, r, budget, shared)
    return (
        (
            upload_parameters(layout, r, expected, shared),
            upload_parameters(layout, r, least, shared),
            upload_parameters(layout, r, greatest, shared),
        ),
        (
            upload_size(layout, r, expected, shared, dtype),
            upload_size(layout, r, least, shared, dtype),
            upload_size(layout, r, greatest, shared, dtype),
        ),
    )


def _adapter(
    layout: Layout, method: Method, rank: int, factors: frozenset[Factor], dtype: ValueType
) -> tuple[int, int]:
    """Parameters and bytes of whole factors, or of the entries that `compress` leaves."""
    parameters, size = download_parameters(layout, rank, factors), download_size(layout, rank, factors, dtype)
    if method.compress is None:
        return parameters, size
    entries = parameters - sum(math.prod(shape) for _, shape in layout.head)
    left_out = entries - math.ceil(method.density * entries)
    width = 2 if dtype == "fp16" else 4
    return parameters - left_out, size - width * left_out + (entries + 7) // 8


def _base_downloads(
    layout: Layout, method: Method, ranks: Sequence[int], cohort: int, rounds: int, full: int
) -> tuple[Fraction, Fraction]:
    """Parameters and bytes of base weights sent in a run, expected: nothing in round 1, then the last round's change to
    those who took part in it, and all that changed to the others. They travel in float32."""
    if method.base_rank is None and not method.full:
        return Fraction(0), Fraction(0)
    whole = change = full
    if method.base_rank is not None:
        rank = method.base_rank(round(cohort * sum(ranks) / len(ranks)), max(ranks))
        whole = sum(m.d_out * m.d_in for m in layout.modules)
        change = sum(min(rank * (m.d_out + m.d_in), m.d_out * m.d_in) for m in layout.modules)
    messages, share = (rounds - 1) * cohort, Fraction(cohort, len(ranks))
    sizes = (base_size(change, layout, "fp32"), base_size(whole, layout, "fp32"))
    return (
        messages * (share * change + (1 - share) * whole),
        messages * (share * sizes[0] + (1 - share) * sizes[1]),
    )


def _choices(
    layout: Layout, r: int, budget: int, trainable: frozenset[Factor]
) -> tuple[list[int], list[int], list[int]]:
    """Slices a module when budget·N of the r·N are chosen: on average, the narrowest first, the widest first."""
    budget = min(budget, r)
    widths = [sum(module.width(factor) for factor in trainable) for module in layout.modules]
    order = sorted(range(len(widths)), key=widths.__getitem__)

    def fill(modules: Sequence[int]) -> list[int]:
        counts = [0] * len(widths)
        for position, module in enumerate(modules):
            counts[module] = min(r, max(0, budget * len(widths) - position * r))
        return counts

    # Every slice is chosen with probability budget / r: `budget` slices a module are the exact mean.
    return [budget] * len(widths), fill(order), fill(order[::-1])


def _check(method: Method, r: int, rank_budgets: Sequence[int], num_server_rounds: int, fraction_train: float) -> None:
    if r < 1 or num_server_rounds < 1:
        raise ConfigError(f"r is {r} and num-server-rounds {num_server_rounds}; expected at least 1 each.")
    if not rank_budgets or min(rank_budgets) < 1:
        raise ConfigError(f"The rank budgets are {list(rank_budgets)}; expected at least 1 for at least one client.")
    if not 0 < fraction_train <= 1:
        raise ConfigError(f"fraction-train is {fraction_train}; expected more than 0 and at most 1.")
    if not method.mixed_ranks and len(set(rank_budgets)) > 1:
        ranks = sorted(set(rank_budgets))
        raise ConfigError(f"Clients have rank budgets {ranks}; {method.name} needs the same for all of them.")
