"""Who takes part: clients with their examples, and their profiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from lora_a2.core.types import ClientProfile
from lora_a2.data.labelled import LabelledData
from lora_a2.data.objects import DataSource
from lora_a2.data.options import DataOptions
from lora_a2.data.sources import load_data
from lora_a2.data.split import split_data
from lora_a2.data.writing import WrittenOptions, load_written
from lora_a2.data.written import DataSet, WrittenData
from lora_a2.engine.work import TokenizedExamples
from lora_a2.errors import ConfigError, DataError
from lora_a2.methods.base import Method
from lora_a2.model.pretrained import Model
from lora_a2.settings.task import CAUSAL_LM
from lora_a2.tasks.base import Encoded

DEFAULT_NUM_CLIENTS = 10


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
    data: DataSet | DataSource,
    model: Model,
    *,
    partitioner: str | None = None,
    num_clients: int | None = None,
    alpha: float = 0.5,
    min_client_examples: int = 1,
    seed: int = 0,
    options: DataOptions | WrittenOptions | None = None,
) -> tuple[Client, ...]:
    """Splits training and test set alike over the clients and tokenises them.

    Args:
        data: what `load_data` gave for the model's labels, or what it takes.
        partitioner: None: "natural" if the data say whose each example is, as a mapping does; else "dirichlet".
        num_clients: None: all that there are of a natural split, 10 of any other.
        alpha: concentration of the Dirichlet and the quantity split.
        min_client_examples: natural clients with fewer training examples are left out.
        seed: of the split, and, if there are no `options`, of what `load_data` draws.
        options: how `load_data` reads data that it is yet to read; their classes are the model's.

    Raises:
        ConfigError: a split that the data do not allow, or data with other labels than the model's.
        DataError: the data cannot be used.
    """
    if not isinstance(data, LabelledData | WrittenData):
        if model.task.name == CAUSAL_LM:
            data = load_written(data, options if isinstance(options, WrittenOptions) else WrittenOptions(seed=seed))
        else:
            read = options if isinstance(options, DataOptions) else DataOptions(seed=seed)
            data = load_data(data, replace(read, label_names=model.label_names))
    elif options is not None:
        raise ConfigError("options say how data are read, and these are read already: give them to load_data.")
    if data.label_names != model.label_names:
        raise ConfigError(
            f"{data.name} has the labels {_some(data.label_names)}, and the model {_some(model.label_names)}: give "
            "load_model labels=data.label_names."
        )
    split = SplitChoice(partitioner, num_clients, alpha, min_client_examples, seed)
    return encoded_clients(data, model, split)[0]


@dataclass(frozen=True)
class SplitChoice:
    """How a data set is split over clients; see `make_clients`."""

    partitioner: str | None = None
    num_clients: int | None = None
    alpha: float = 0.5
    min_client_examples: int = 1
    seed: int = 0


@dataclass(frozen=True)
class TokenCounts:
    """How the examples of a data set became tokens: how many were cut to the model's `max_length`, training and test together, and
    `notes`, what a user should know."""

    max_length: int
    num_cut: int
    notes: tuple[str, ...]


def encoded_clients(data: DataSet, model: Model, split: SplitChoice) -> tuple[tuple[Client, ...], TokenCounts]:
    """The clients of a data set, and how its examples became tokens.

    Raises:
        ConfigError: a split that the data do not allow.
        DataError: an example that cannot be used, or a client with nothing to learn from.
    """
    partitioner, num_clients = split.partitioner, split.num_clients
    if partitioner is None:
        partitioner = "natural" if data.train.clients is not None else "iid" if not data.label_names else "dirichlet"
    if num_clients is None and partitioner != "natural":
        num_clients = DEFAULT_NUM_CLIENTS
    found = split_data(
        data,
        partitioner=partitioner,
        num_clients=num_clients,
        alpha=split.alpha,
        min_client_examples=split.min_client_examples,
        seed=split.seed,
    )
    train, test = model.encode(data.train), model.encode(data.test)
    clients = []
    for i, (name, rows, test_rows) in enumerate(zip(found.names, found.train, found.test, strict=True)):
        own = train.of(rows)
        if not len(own):
            raise DataError(
                f"Client {name!r} has no example with anything to learn: all of its {len(rows)} are cut to their prompts by "
                f"max-length = {model.max_length}; choose a larger one, or leave the client out."
            )
        clients.append(Client(i, name, own, test.of(test_rows)))
    counts = TokenCounts(model.max_length, train.num_cut + test.num_cut, tuple(encoding_notes(train, test)))
    return tuple(clients), counts


def encoding_notes(train: Encoded, test: Encoded) -> Iterator[str]:
    """What was cut and dropped, and what else is to be told once."""
    for name, part in (("training", train), ("test", test)):
        total = len(part.rows) + part.num_dropped
        if part.num_cut:
            yield f"{part.num_cut} of {total} {name} examples are cut to max-length."
        if part.num_dropped:
            yield f"{part.num_dropped} of {total} {name} examples are left out, as there is nothing to learn from them."
    yield from dict.fromkeys((*train.notes, *test.notes))


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def make_profiles(
    method: Method, clients: Sequence[Client], r: int, rank_budgets: Sequence[int]
) -> tuple[ClientProfile, ...]:
    """A profile for each client."""
    return tuple(
        make_profile(method, c.id, r, budget, len(c.train)) for c, budget in zip(clients, rank_budgets, strict=True)
    )
