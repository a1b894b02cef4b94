"""Options of a federation, and those of a plan: all that a run needs to be told besides model, data and clients."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, PlainValidator

from lora_a2.codec import EXACT, VALUE_TYPES
from lora_a2.core.budgets import DISTRIBUTIONS, RankBudget, budget_values, check_budgets, parse_budget, rank_budgets
from lora_a2.core.optimizers import DEFAULT_OPTIMIZER, OPTIMIZERS, Rates, ServerOptimizer
from lora_a2.core.randomness import generator
from lora_a2.errors import ConfigError
from lora_a2.federation.probes import ProbeOptions, get_probe
from lora_a2.federation.proximal import ProximalOptions, proximal_penalty
from lora_a2.federation.schedule import DEFAULT_SCHEDULE, SCHEDULES, RateSchedule
from lora_a2.methods import DEFAULT_METHOD, METHODS, get_method
from lora_a2.methods.base import Method
from lora_a2.privacy.laplace import LaplaceOptions, make_noise
from lora_a2.settings.options import MOST, Effect, Float, Int, Options, among, declaring, option

DEFAULT_RANK_BUDGET = 2


def _known_method(name: str) -> str:
    try:
        return get_method(name).name
    except ConfigError as error:
        raise ValueError(str(error)) from None


def _rank_budget(value: Any) -> RankBudget:
    try:
        return parse_budget(value)
    except ConfigError as error:
        raise ValueError(str(error)) from None


@declaring((own for method in METHODS.values() for own in method.options), "Method")
class MethodChoice(Options):
    """The method, with a field for each option that a method's own file declares."""

    method: Annotated[str, AfterValidator(_known_method)] = option(
        DEFAULT_METHOD, "Method", f"The algorithm: {', '.join(METHODS)}.", reach="nodes"
    )

    def chosen_method(self) -> Method:
        """The method with its options.

        Raises:
            ConfigError: it has no such option.
        """
        return _chosen(dict(self))


def _chosen(values: dict[str, Any]) -> Method:
    return get_method(values["method"], **{name: values.get(name) for name in own_options()})


def own_options() -> tuple[str, ...]:
    """The names of the options that methods declare."""
    return tuple(name for name in MethodChoice.model_fields if name != "method")


def usual_rank_budget(method: Method, r: int) -> int:
    """The rank budget of every client if none is given."""
    return min(DEFAULT_RANK_BUDGET, r) if method.select is not None else r


def _default_rank_budget(given: dict[str, Any]) -> int:
    r: int = given.get("r", 1)
    return usual_rank_budget(_chosen(given), r) if "method" in given else r  # a wrong method is refused anyway


class MethodOptions(MethodChoice):
    """The method and the sizes of its adapters."""

    r: Int = option(16, "Method", "Rank of the server's adapter.", reach="nodes", ge=1, le=65535)
    lora_alpha: Float = option(16.0, "Method", "The adapter is scaled by lora-alpha / r.", reach="nodes", gt=0)
    rank_budget: Annotated[RankBudget, PlainValidator(_rank_budget)] = option(
        _default_rank_budget,
        "Method",
        "Ranks a module that a client may upload: a number, a list with one for each client, or a distribution.",
        metavar=f"N|N,N,...|{'|'.join(DISTRIBUTIONS)}",
        shown=f"{DEFAULT_RANK_BUDGET} for methods that select ranks, else r",
        reach="nodes",
    )


class WireOptions(Options):
    """How values travel."""

    wire_dtype: Annotated[str, among(VALUE_TYPES)] = option(
        EXACT, "Method", "Number type of what is sent.", metavar="|".join(VALUE_TYPES), reach="nodes"
    )


def _with(*names: str) -> Effect:
    return Effect(lambda c: c.server_optimizer in names, f"--server-optimizer {' or '.join(names)}")


class ServerOptimizerOptions(Options):
    """How the mean of a round's updates moves the server's values."""

    server_optimizer: Annotated[str, among(OPTIMIZERS)] = option(
        DEFAULT_OPTIMIZER,
        "Server",
        "How the mean of the clients' updates moves the server's values: added (sgd), or by FedAvgM, FedAdam, FedYogi.",
        metavar="|".join(OPTIMIZERS),
        reach="nobody",
    )
    server_learning_rate: Float | None = option(
        None,
        "Server",
        "Learning rate of the server.",
        shown=", ".join(f"{kind.learning_rate:g} with {name}" for name, kind in OPTIMIZERS.items()),
        reach="nobody",
        gt=0,
    )
    server_momentum: Float = option(
        Rates().momentum,
        "Server",
        "β₁: what is kept of the last round's momentum.",
        reach="nobody",
        effect=_with("momentum", "adam", "yogi"),
        ge=0,
        lt=1,
    )
    server_second_momentum: Float = option(
        Rates().second_momentum,
        "Server",
        "β₂: what is kept of the last round's squares.",
        reach="nobody",
        effect=_with("adam", "yogi"),
        ge=0,
        lt=1,
    )
    server_epsilon: Float = option(
        Rates().epsilon,
        "Server",
        "τ: what is added to the root of the squares.",
        reach="nobody",
        effect=_with("adam", "yogi"),
        gt=0,
    )

    def chosen_optimizer(self, method: Method) -> ServerOptimizer:
        """The server optimizer of a run.

        Raises:
            ConfigError: another than plain SGD, for a method whose server does more than average.
        """
        rate = self.server_learning_rate
        chosen = ServerOptimizer(
            self.server_optimizer,
            Rates(
                OPTIMIZERS[self.server_optimizer].learning_rate if rate is None else rate,
                self.server_momentum,
                self.server_second_momentum,
                self.server_epsilon,
            ),
        )
        if not (chosen.plain or method.linear):
            linear = ", ".join(m.name for m in METHODS.values() if m.linear)
            option_name = "server-learning-rate" if self.server_optimizer == DEFAULT_OPTIMIZER else "server-optimizer"
            raise ConfigError(
                f"{option_name}: the server of {method.name} does more than average; leave it out, or use {linear}."
            )
        return chosen


class TrainingOptions(Options):
    """The rounds, local training, and the seed."""

    num_server_rounds: Int = option(10, "Training", "Number of server rounds.", reach="nodes", ge=1, le=MOST)
    fraction_train: Float = option(1.0, "Training", "Share of the clients that train in a round.", gt=0, le=1)
    local_epochs: Int = option(2, "Training", "Epochs that a client trains in a round.", reach="nodes", ge=1, le=MOST)
    max_steps_per_round: Int | None = option(
        None,
        "Training",
        "Steps of AdamW after which a client's round ends, and a probe's epoch too, even in the midst of an epoch.",
        shown="all of local-epochs",
        reach="nodes",
        ge=1,
        le=MOST,
    )
    batch_size: Int = option(16, "Training", "Examples in a client's batch.", reach="nodes", ge=1, le=MOST)
    gradient_accumulation_steps: Int = option(
        1,
        "Training",
        "Batches whose gradients are added up for one step, so that it has the effect of a batch this many times as large.",
        reach="nodes",
        ge=1,
        le=MOST,
    )
    learning_rate: Float | None = option(
        None, "Training", "Learning rate of A; the default of method and model if left out.", reach="nodes", gt=0
    )
    learning_rate_ratio: Float | None = option(
        None,
        "Training",
        "Learning rate of B over that of A; the method's default if left out.",
        reach="nodes",
        gt=0,
    )
    gradient_checkpointing: bool = option(
        False,
        "Training",
        "Keep what enters each block and compute the block once more in the backward pass: less memory, more time.",
        reach="nodes",
    )
    lr_scheduler_type: Annotated[str, among(SCHEDULES)] = option(
        DEFAULT_SCHEDULE,
        "Training",
        "How learning rates go over the server rounds: linear and cosine go down to 0 after the last one.",
        metavar="|".join(SCHEDULES),
        reach="nodes",
    )
    warmup_rounds: Int = option(
        0,
        "Training",
        "First server rounds in which learning rates rise to the full ones.",
        reach="nodes",
        ge=0,
        le=MOST,
    )
    weight_decay: Float = option(0.01, "Training", "Weight decay of AdamW.", reach="nodes", ge=0)
    max_grad_norm: Float | None = option(
        None,
        "Training",
        "L2 norm to which the gradient of each client's step is scaled down, over all that it trains.",
        shown="not scaled",
        reach="nodes",
        gt=0,
    )
    max_update_ratio: Float | None = option(
        None,
        "Training",
        "Refuse a client that moves farther than AdamW can, or than this many times the median of the last rounds, by the root of "
        "its local steps; 0: refuse none.",
        shown="0; 10 if the clients are nodes",
        reach="nobody",
        ge=0,
    )
    seed: Int = option(0, "Training", "Determines every random number.", reach="nodes", ge=0)

    def chosen_schedule(self) -> RateSchedule:
        """How the learning rate goes from round to round.

        Raises:
            ConfigError: all rounds are for warming up.
        """
        if self.warmup_rounds >= self.num_server_rounds:
            raise ConfigError(
                f"warmup-rounds: {self.warmup_rounds} of {self.num_server_rounds} server rounds leave none at the full learning "
                "rate; give fewer."
            )
        return RateSchedule(self.lr_scheduler_type, self.warmup_rounds, self.num_server_rounds)


class ExecutionOptions(Options):
    """How the machine that drives a run goes about it."""

    eval_every: Int = option(1, "Run", "Evaluate after every this many rounds, and after the last.", ge=1)
    early_stopping_patience: Int | None = option(
        None,
        "Run",
        "End the run after this many evaluations without a better accuracy, or perplexity. They are on the test set, unless "
        "--validation-fraction puts another in its place.",
        shown="all rounds are trained",
        reach="nobody",
        ge=1,
        le=MOST,
    )
    generate: Int = option(
        0,
        "Task",
        "Test examples that a model which writes answers at an evaluation, for exact match, ROUGE-L, BLEU and chrF.",
        reach="nodes",
        ge=0,
        le=MOST,
    )
    clients_per_pass: Int | None = option(
        None,
        "Run",
        "Clients in one forward pass; if left out, one on a CPU and all of the round on a GPU.",
        reach="nobody",
        app=False,  # every node trains one client
        ge=1,
    )
    num_workers: Int | None = option(
        None,
        "Run",
        "Forward passes side by side; one a core on a CPU if left out. Changes no result.",
        reach="nobody",
        ge=1,
    )


# pydantic takes the fields of the last base first.
class PlanOptions(
    ExecutionOptions,
    ProximalOptions,
    ServerOptimizerOptions,
    TrainingOptions,
    WireOptions,
    LaplaceOptions,
    ProbeOptions,
    MethodOptions,
):
    """All that a plan needs to be told besides model and clients."""

    def budgets(self, num_clients: int) -> tuple[int, ...]:
        """The clients' rank budgets.

        Raises:
            ConfigError: a list of another length.
        """
        return rank_budgets(self.rank_budget, num_clients, self.r, generator(self.seed, "rank-budget"))

    def check_with(self, method: Method) -> None:
        """Compares the options with each other, and with what the method allows.

        Raises:
            ConfigError: they do not go together.
        """
        check_budgets(self.rank_budget, self.r)
        get_probe(method, self.probe, self.probe_batches)
        make_noise(self, full=method.full)
        proximal_penalty(self, method)
        self.chosen_optimizer(method)
        self.chosen_schedule()
        if self.laplace_epsilon is not None and method.gradients is not None:
            raise ConfigError(f"laplace-epsilon: {method.name} uploads gradients without noise; leave it out.")
        if self.max_grad_norm is not None and self.laplace_epsilon is not None:
            raise ConfigError("max-grad-norm: laplace-clipping-norm scales gradients already; give one of them.")
        if self.max_update_ratio and self.laplace_epsilon is not None:
            raise ConfigError("max-update-ratio: noise of laplace-epsilon moves replies too; give one of them.")
        if not method.mixed_ranks and len(set(budget_values(self.rank_budget))) > 1:
            mixed = ", ".join(m.name for m in METHODS.values() if m.mixed_ranks)
            raise ConfigError(
                f"rank-budget: {method.name} needs the same for every client; give one number, or use {mixed}."
            )
