"""What a run will send, before it runs: parameters and bytes up and down, from the layout alone.

Which rank slices a method with `select` uploads depends on the data. The estimate is the expected value under uniformly
chosen slices; the bounds hold whatever is chosen. Ranks that clients prune on their own are counted as if they kept them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from lora_a2.codec import VALUE_TYPES, base_size, changed_size, upload_parameters, upload_size, whole_size
from lora_a2.core.sampling import cohort_size
from lora_a2.core.types import Factor, Layout
from lora_a2.errors import ConfigError
from lora_a2.methods.base import Method


@dataclass(frozen=True, slots=True)
class Cost:
    """The traffic of a whole run, all server rounds and clients together.

    Attributes:
        clients_per_round: size of a cohort.
        uploaded_parameters: values that clients send, as the paper counts them; the expected number if it depends
            on which clients and which rank slices are chosen, each drawn uniformly.
        uploaded_parameters_min: if always the narrowest slices of the clients that send least are chosen.
        uploaded_parameters_max: if always the widest slices of the clients that send most are.
        uploaded_bytes: the frames that carry them, with header, bitmap and checksum; `_min`, `_max` likewise.
        downloaded_parameters: values that the server sends: what changed since a client last took part, expected over the
            clients and the rank slices chosen.
        downloaded_parameters_min: if clients always choose the same, narrowest slices, and nobody missed a round.
        downloaded_parameters_max: if whatever is ever trained changes in every round.
        downloaded_bytes: the frames that carry them; `_min`, `_max` likewise.
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
    downloaded_parameters_min: int
    downloaded_parameters_max: int
    downloaded_bytes: int
    downloaded_bytes_min: int
    downloaded_bytes_max: int
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
    dtype: str = "fp32",
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
    targets = sum(m.d_out * m.d_in for m in layout.modules)
    kinds = Counter((method.shared(n), method.asks_gradients(n)) for n in range(1, num_server_rounds + 1))
    for (shared, gradients), rounds in kinds.items():
        weights = full_parameters if method.full else targets if gradients else 0
        each = {b: _uploads(layout, method, r, b, shared, dtype, weights) for b in set(rank_budgets)}
        parameters = parameters.plus(rounds, cohort, [each[budget][0] for budget in rank_budgets])
        size = size.plus(rounds, cohort, [each[budget][1] for budget in rank_budgets])

    ranks = [r if method.select else budget for budget in rank_budgets]
    down_parameters, down_size = _downloads(layout, method, ranks, rank_budgets, cohort, num_server_rounds, dtype)
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
        downloaded_parameters=round(down_parameters.expected + base[0].expected),
        downloaded_parameters_min=down_parameters.least + base[0].least,
        downloaded_parameters_max=down_parameters.greatest + base[0].greatest,
        downloaded_bytes=round(down_size.expected + base[1].expected),
        downloaded_bytes_min=down_size.least + base[1].least,
        downloaded_bytes_max=down_size.greatest + base[1].greatest,
        full_finetuning_parameters=messages * full_parameters,
    )


def _uploads(
    layout: Layout, method: Method, r: int, budget: int, shared: frozenset[Factor], dtype: str, weights: int
) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Parameters and bytes of one client's upload, each (expected, least, greatest); `weights` of the base travel too."""
    if not method.select:
        dense = upload_parameters(layout, budget, None, shared), upload_size(layout, budget, None, shared, dtype)
        parameters, size = _sparse(layout, method, *dense, dtype)
        parameters, size = parameters + weights, size + base_size(weights, layout, dtype)
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


def _head(layout: Layout) -> int:
    return sum(math.prod(shape) for _, shape in layout.head)


def _sparse(layout: Layout, method: Method, parameters: int, size: int, dtype: str) -> tuple[int, int]:
    """Parameters and bytes of a frame that would have this many if all travelled: of what a sparse method leaves, with the
    bitmap of entries."""
    if not method.sparse:
        return parameters, size
    entries = parameters - _head(layout)
    left_out = entries - math.ceil(method.density * entries)
    return parameters - left_out, size - VALUE_TYPES[dtype].size([left_out]) + (entries + 7) // 8


def _downloads(
    layout: Layout,
    method: Method,
    ranks: Sequence[int],
    budgets: Sequence[int],
    cohort: int,
    rounds: int,
    dtype: str,
) -> tuple[_Total, _Total]:
    """Parameters and bytes of adapters and heads sent in a run, without base weights.

    For every factor the share of rank slices that changed since a client last took part is followed from round to round:
    a client takes part with probability K / N, and each of the cohort's clients changes a slice with probability
    budget / r, independently.
    """
    if method.sparse:
        wholes = [_whole(layout, method, rank, dtype) for rank in ranks]
        both = (_Total().plus(rounds, cohort, [(whole[i],) * 3 for whole in wholes]) for i in (0, 1))
        first, second = both
        return first, second
    parameters, size = _Total(), _Total()
    for rounds_alike, shares in _shares_changed(method, max(ranks), budgets, cohort / len(ranks), cohort, rounds):
        values = {rank: [_changed(layout, rank, *s) for s in shares] for rank in set(ranks)}
        sizes = {k: [changed_size(layout, k, method.travels, v, dtype) for v in values[k]] for k in values}
        parameters = parameters.plus(rounds_alike, cohort, [(v[0], v[1], v[2]) for v in map(values.get, ranks) if v])
        size = size.plus(rounds_alike, cohort, [(v[0], v[1], v[2]) for v in map(sizes.get, ranks) if v])
    return parameters, size


_Shares = tuple[Mapping[Factor, float], float]
"""Factor → the share of its rank slices that changed since a client last took part; and that of the head."""
_SETTLED = 1000
"""Rounds after which the shares of a schedule's rounds are those of the period before."""


def _shares_changed(
    method: Method, r: int, budgets: Sequence[int], share: float, cohort: int, rounds: int
) -> Iterator[tuple[int, tuple[_Shares, _Shares, _Shares]]]:
    """Groups of rounds alike: how many, and the shares (expected, least, greatest) that their downloads carry."""
    selects, period = method.select is not None, len(method.schedule.period)
    untouched = (1 - sum(min(b, r) for b in budgets) / len(budgets) / r) ** cohort if selects else 0.0
    expected = dict.fromkeys(method.travels, 0.0)
    least, most, ever, head = dict(expected), dict(expected), dict(expected), 0.0
    followed = min(rounds, _SETTLED)
    for number in range(1, followed + 1):
        later = (rounds - number) // period if number > followed - period else 0
        yield 1 + later, ((dict(expected), head), (dict(least), head), (dict(most), head))
        for factor in method.travels:
            changes = factor in method.changes(number)
            if changes:
                expected[factor] = 1 - untouched * (1 - (1 - share) * expected[factor])
                ever[factor] = min(1.0, ever[factor] + sum(budgets) / r) if selects else 1.0
                least[factor] = min(1.0, min(budgets) / r) if selects else 1.0
            else:
                expected[factor] *= 1 - share
                least[factor] = 0.0
            most[factor] = ever[factor] if share < 1 or changes else 0.0
        head = max(head, 0.0 if method.asks_gradients(number) else 1.0)


def _changed(layout: Layout, rank: int, shares: Mapping[Factor, float], head: float) -> int:
    """Values of so large a share of each factor's rank slices, and of the head."""
    values = sum(share * m.width(x, rank) * rank for x, share in shares.items() for m in layout.modules)
    return round(values + head * _head(layout))


def _whole(layout: Layout, method: Method, rank: int, dtype: str) -> tuple[int, int]:
    """Parameters and bytes of a sparse download."""
    dense = upload_parameters(layout, rank, None, method.travels), whole_size(layout, rank, method.travels, dtype)
    return _sparse(layout, method, *dense, dtype)


def _base_downloads(
    layout: Layout, method: Method, ranks: Sequence[int], cohort: int, rounds: int, full: int
) -> tuple[_Total, _Total]:
    """Parameters and bytes of base weights sent in a run: nothing in round 1, then the last round's change to those who
    took part in it, and all that changed to the others. They travel in float32."""
    if not method.moves_base:
        return _Total(), _Total()
    whole = change = full
    if method.update_rank is not None:
        rank = method.update_rank(round(cohort * sum(ranks) / len(ranks)), max(ranks))
        whole = sum(m.d_out * m.d_in for m in layout.modules)
        change = sum(min(rank * (m.d_out + m.d_in), m.d_out * m.d_in) for m in layout.modules)
    messages, share = (rounds - 1) * cohort, Fraction(cohort, len(ranks))

    def total(small: int, large: int) -> _Total:
        expected = messages * (share * small + (1 - share) * large)
        return _Total(expected, messages * min(small, large), messages * (small if share == 1 else max(small, large)))

    return total(change, whole), total(base_size(change, layout, "fp32"), base_size(whole, layout, "fp32"))


def _choices(
    layout: Layout, r: int, budget: int, trainable: frozenset[Factor]
) -> tuple[list[int], list[int], list[int]]:
    """Slices a module when budget·N of the r·N are chosen: on average, the narrowest first, the widest first."""
    budget = min(budget, r)
    widths = [sum(module.width(factor, r) for factor in trainable) for module in layout.modules]
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
