"""What both ends of a federation agree on before the first round, each from its own copy of the model."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lora_a2.core.algebra import initial_adapter
from lora_a2.core.optimizers import PLAIN, ServerOptimizer
from lora_a2.core.randomness import generator
from lora_a2.core.transforms import Transform
from lora_a2.core.types import Adapter, Layout
from lora_a2.engine.full import weight_shapes
from lora_a2.engine.work import TrainingSettings
from lora_a2.errors import ConfigError
from lora_a2.federation.options import PlanOptions
from lora_a2.federation.probes import Probe, epoch, get_probe
from lora_a2.federation.proximal import proximal_penalty
from lora_a2.federation.schedule import STEADY, RateSchedule
from lora_a2.methods.base import Method
from lora_a2.model.defaults import usual_learning_rate
from lora_a2.model.pretrained import Model, layout_head
from lora_a2.privacy.laplace import make_noise


@dataclass(frozen=True)
class Federation:
    """What both ends of a federation agree on before the first round.

    Attributes:
        method: the algorithm.
        layout: modules and head of the adapter.
        initial: the seeded start at the server's rank; supplies factors that never travel.
        seed: of every random number.
        local_epochs: E.
        training: hyperparameters of local training, with the learning rate that `schedule` goes down from; see `training_in`.
        wire_dtype: value type of payloads.
        probe: how clients choose rank slices, if the method selects them.
        server_optimizer: how the mean of a round's updates moves the server's values.
        transforms: what becomes of an update on its way: the run's own, then the method's.
        schedule: how the learning rate goes from round to round.
    """

    method: Method
    layout: Layout
    initial: Adapter
    seed: int
    local_epochs: int
    training: TrainingSettings
    wire_dtype: str
    probe: Probe = epoch
    server_optimizer: ServerOptimizer = PLAIN
    transforms: tuple[Transform, ...] = ()
    schedule: RateSchedule = STEADY

    def training_in(self, server_round: int) -> TrainingSettings:
        """The hyperparameters of local training in this round (from 1 on)."""
        return replace(self.training, learning_rate=self.training.learning_rate * self.schedule.factor(server_round))

    @property
    def sparse(self) -> bool:
        """Whether entries that are zero do not travel."""
        return any(transform.sparse for transform in self.transforms)

    @property
    def bounded(self) -> bool:
        """Whether replies are in proportion to what clients train."""
        return all(transform.bounded for transform in self.transforms)

    @property
    def exact(self) -> bool:
        """Whether the new effective weights are the weighted mean of the clients'."""
        return self.method.exact and self.server_optimizer.plain and all(t.exact for t in self.transforms)


def make_federation(model: Model, method: Method, options: PlanOptions, num_clients: int) -> Federation:
    """What both ends agree on, each from its own copy of the model; it depends on no client's data.

    `method` is the resolved one: `options.chosen_method()`, or one that is not in the registry.

    Raises:
        ModelError: a model whose blocks cannot be computed once more, where options ask for it.
        ConfigError: base weights of 4 bits, for a method that moves them; a probe, or noise, that is not for this method; rank
            budgets for another number of clients.
    """
    if method.moves_base and model.network.load_in_4bit:
        raise ConfigError(
            f"load-in-4bit: {method.name} moves base weights, which those of 4 bits cannot; choose another method."
        )
    noise = make_noise(options, full=method.full)
    if options.gradient_checkpointing:
        model.network.check_recomputing()
    rank = options.r if method.select else max(options.budgets(num_clients))
    start = generator(options.seed, "adapter")
    rate, ratio = options.learning_rate, options.learning_rate_ratio
    return Federation(
        method=method,
        layout=federation_layout(model, method),
        initial=initial_adapter(model.layout, rank, options.lora_alpha, start, layout_head(model), method.core),
        seed=options.seed,
        local_epochs=options.local_epochs,
        training=TrainingSettings(
            batch_size=options.batch_size,
            learning_rate=usual_learning_rate(model.name, method) if rate is None else rate,
            learning_rate_ratio=method.learning_rate_ratio if ratio is None else ratio,
            weight_decay=options.weight_decay,
            penalties=(*method.penalties, *proximal_penalty(options, method)),
            clipping_norm=next((t.l1_clipping_norm for t in noise if t.l1_clipping_norm is not None), None),
            max_grad_norm=options.max_grad_norm,
            gradient_accumulation_steps=options.gradient_accumulation_steps,
            max_steps=options.max_steps_per_round,
            gradient_checkpointing=options.gradient_checkpointing,
        ),
        wire_dtype=options.wire_dtype,
        probe=get_probe(method, options.probe, options.probe_batches),
        server_optimizer=options.chosen_optimizer(method),
        transforms=(*noise, *method.transforms),
        schedule=options.chosen_schedule(),
    )


def federation_layout(model: Model, method: Method) -> Layout:
    """The model's layout, with every weight if the method trains all of them."""
    return replace(model.layout, dense=weight_shapes(model.network)) if method.full else model.layout
