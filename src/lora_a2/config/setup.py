"""What a configuration stands for, loaded: data, model, clients, and the plan that both ends of a federation derive from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lora_a2.config.opening import learning_rate
from lora_a2.config.run import RunConfig
from lora_a2.core.sampling import cohort_size
from lora_a2.core.types import ClientProfile
from lora_a2.data.written import DataSet
from lora_a2.engine.precision import dtype_name
from lora_a2.federation.agreement import Federation, make_federation
from lora_a2.federation.exchange import RoundRules
from lora_a2.federation.loop import Plan, make_schedule
from lora_a2.federation.population import Client, SplitChoice, TokenCounts, encoded_clients, make_profile
from lora_a2.federation.probes import resolved_probe
from lora_a2.model.config import ModelConfig
from lora_a2.model.defaults import ModelDefaults, model_defaults
from lora_a2.model.pretrained import Model, load_model
from lora_a2.settings.task import CAUSAL_LM, CLASSIFICATION
from lora_a2.tasks.options import WritingOptions


def open_model(config: RunConfig, label_names: Sequence[str]) -> Model:
    """The model of a configuration, with a head for these labels if it is to label.

    Raises:
        ModelError: no such model, or nothing in it to adapt.
    """
    given: dict[str, Any] = {**dict(config.part(ModelConfig)), **dict(config.part(WritingOptions)), "seed": config.seed}
    name = given.pop("model")
    if config.task == CAUSAL_LM:
        return load_model(name, task=CAUSAL_LM, **given)
    given["head_scale"] = config.head_scale or model_defaults(config.model).head_scale
    return load_model(name, labels=label_names, **given)


def open_clients(config: RunConfig, data: DataSet, model: Model) -> tuple[tuple[Client, ...], TokenCounts]:
    """The data set split over the clients, and how its examples became tokens.

    Raises:
        ConfigError: a split that the data do not allow.
    """
    return encoded_clients(data, model, SplitChoice(**config.split_options()))


def resolved(config: RunConfig, model: Model, num_clients: int) -> RunConfig:
    """The configuration with the defaults filled in that depend on model and clients."""
    method, defaults = config.chosen_method(), model_defaults(config.model)
    return config.model_copy(
        update={
            "num_clients": num_clients,
            "task": model.task.name,
            **_head(config, model, defaults),
            "dtype": dtype_name(model.network.dtype),
            "device": str(model.network.device),
            "learning_rate": learning_rate(config),
            "learning_rate_ratio": config.learning_rate_ratio or method.learning_rate_ratio,
            **resolved_probe(method, config.probe, config.probe_batches),
            "clients_per_pass": config.clients_per_pass or usual_cohort(model, num_clients, config.fraction_train),
        }
    )


def _head(config: RunConfig, model: Model, defaults: ModelDefaults) -> dict[str, Any]:
    """Options of a classification head, where there is one."""
    if model.task.name != CLASSIFICATION:
        return {}
    return {"head_scale": config.head_scale or defaults.head_scale, "pooling": model.network.objective.pooling}


def usual_cohort(model: Model, num_clients: int, fraction_train: float) -> int:
    """One client at a time on a CPU, where more gain nothing; the whole cohort on a GPU."""
    return 1 if model.network.device.type == "cpu" else cohort_size(num_clients, fraction_train)


def federation_of(config: RunConfig, model: Model) -> Federation:
    """What both ends agree on; `config` is resolved. It depends on no client's data."""
    assert config.num_clients is not None, "the configuration is resolved"
    return make_federation(model, config.chosen_method(), config, config.num_clients)


def profile_of(config: RunConfig, client: int, num_examples: int) -> ClientProfile:
    """The profile of one of the configuration's clients, numbered from 0; `config` is resolved."""
    assert config.num_clients is not None, "the configuration is resolved"
    budget = config.budgets(config.num_clients)[client]
    return make_profile(config.chosen_method(), client, config.r, budget, num_examples)


def plan_of(
    config: RunConfig, model: Model, clients: Sequence[tuple[int, int]], rules: RoundRules | None = None
) -> Plan:
    """The plan of a run with these clients, (number, number of examples) each; `config` is resolved."""
    assert config.clients_per_pass is not None, "the configuration is resolved"
    profiles = [profile_of(config, client, num_examples) for client, num_examples in clients]
    return make_schedule(federation_of(config, model), profiles, config, rules)
