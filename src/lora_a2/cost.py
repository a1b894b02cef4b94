"""What a run will send, before it runs: parameters and bytes up and down, from the layout alone.

Which rank slices a method with `select` uploads depends on the data. The estimate is the expected value under uniformly
chosen slices; the bounds hold whatever is chosen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from lora_a2.codec import ValueType, download_parameters, download_size, upload_parameters, upload_size
from lora_a2.cohorts import cohort_size
from lora_a2.errors import ConfigError
from lora_a2.method import Method
from lora_a2.types import Factor, Layout


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
    for trainable, rounds in Counter(map(method.trainable, range(1, num_server_rounds + 1))).items():
        each = {budget: _uploads(layout, method, r, budget, trainable, dtype) for budget in set(rank_budgets)}
        parameters = parameters.plus(rounds, cohort, [each[budget][0] for budget in rank_budgets])
        size = size.plus(rounds, cohort, [each[budget][1] for budget in rank_budgets])

    ranks = [r if method.select else budget for budget in rank_budgets]
    travels = method.ever_trained
    downloads = [download_parameters(layout, rank, travels) for rank in ranks]
    download_sizes = [download_size(layout, rank, travels, dtype) for rank in ranks]
    messages = num_server_rounds * cohort
    return Cost(
        clients_per_round=cohort,
        uploaded_parameters=round(parameters.expected),
        uploaded_parameters_min=parameters.least,
        uploaded_parameters_max=parameters.greatest,
        uploaded_bytes=round(size.expected),
        uploaded_bytes_min=size.least,
        uploaded_bytes_max=size.greatest,
        downloaded_parameters=round(Fraction(messages * sum(downloads), len(ranks))),
        downloaded_bytes=round(Fraction(messages * sum(download_sizes), len(ranks))),
        full_finetuning_parameters=messages * full_parameters,
    )


def _uploads(
    layout: Layout, method: Method, r: int, budget: int, trainable: frozenset[Factor], dtype: ValueType
) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Parameters and bytes of one client's upload, each (expected, least, greatest)."""
    rank, choices = (r, _choices(layout, r, budget, trainable)) if method.select else (budget, (None, None, None))
    expected, least, greatest = choices
    return (
        (
            upload_parameters(layout, rank, expected, trainable),
            upload_parameters(layout, rank, least, trainable),
            upload_parameters(layout, rank, greatest, trainable),
        ),
        (
            upload_size(layout, rank, expected, trainable, dtype),
            upload_size(layout, rank, least, trainable, dtype),
            upload_size(layout, rank, greatest, trainable, dtype),
        ),
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
