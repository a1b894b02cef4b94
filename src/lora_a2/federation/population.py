"""Who takes part: clients with their examples, and their profiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lora_a2.core.types import ClientProfile
from lora_a2.data.labelled import LabelledData
from lora_a2.data.split import split_data
from lora_a2.engine.work import TokenizedExamples
from lora_a2.methods.base import Method
from lora_a2.model.pretrained import Model


@dataclass(frozen=True)
class Client:
    """A simulated client: its name and its tokenised training and test examples (the latter may be none)."""

    id: int
    name: str
    train: TokenizedExamples
    test: TokenizedExamples


def make_profile(method: Method, client: int, r: int, rank_budget: int, num_examples: int) -> ClientProfile:
    """With selection a client holds all r ranks and uploads within its budget; without, it holds as many as its budget."""
    return ClientProfile(client, r if method.select else rank_budget, rank_budget, num_examples)


def make_clients(
    data: LabelledData,
    model: Model,
    *,
    partitioner: str = "dirichlet",
    num_clients: int | None = 10,
    alpha: float = 0.5,
    min_client_examples: int = 1,
    seed: int = 0,
) -> tuple[Client, ...]:
    """Splits training and test set alike over the clients and tokenises them.

    Raises:
        ConfigError: a split that the data do not allow.
    """
    split = split_data(
        data,
        partitioner=partitioner,
        num_clients=num_clients,
        alpha=alpha,
        min_client_examples=min_client_examples,
        seed=seed,
    )
    train, test = (TokenizedExamples(model.tokenize_data(part.texts), part.labels) for part in (data.train, data.test))
    return tuple(
        Client(i, name, train.take(rows), test.take(test_rows))
        for i, (name, rows, test_rows) in enumerate(zip(split.names, split.train, split.test, strict=True))
    )


def make_profiles(
    method: Method, clients: Sequence[Client], r: int, rank_budgets: Sequence[int]
) -> tuple[ClientProfile, ...]:
    """A profile for each client."""
    return tuple(
        make_profile(method, c.id, r, budget, len(c.train)) for c, budget in zip(clients, rank_budgets, strict=True)
    )
