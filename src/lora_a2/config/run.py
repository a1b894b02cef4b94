"""The configuration of a run: one model, from which the options of the command line and the keys of a TOML file come.

Keys are kebab-case in TOML, snake_case is understood too. Whatever is wrong is a `ConfigError` of one line. A
`RunConfig` is resolved: defaults that depend on other options are filled in.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PlainValidator,
    ValidationError,
    model_validator,
)

from lora_a2.config.effects import check_effects
from lora_a2.config.errors import kebab, one_line
from lora_a2.core.budgets import DISTRIBUTIONS, RankBudget, budget_values, check_budgets, check_length, parse_budget
from lora_a2.core.selection import CRITERIA
from lora_a2.errors import ConfigError
from lora_a2.federation.probes import DEFAULT_PROBE, DEFAULT_PROBE_BATCHES, ProbeName, get_probe
from lora_a2.methods import DEFAULT_METHOD, METHODS, get_method
from lora_a2.methods.base import Method
from lora_a2.privacy.laplace import DEFAULT_CLIPPING_NORM, make_noise
from lora_a2.trackers import TRACKERS, known_trackers

Partitioner = Literal["iid", "dirichlet", "quantity", "pathological", "natural"]
DEFAULT_NUM_CLIENTS = 10
DEFAULT_RANK_BUDGET = 2
MOST = 1_000_000
"""Bound of whole numbers that nothing else bounds: above it is a slip of the finger."""


def _option(
    default: Any, group: str, description: str, *, metavar: str | None = None, shown: str | None = None, **bounds: Any
) -> Any:
    """A field with its group in the help text; `shown` describes a default that depends on other options."""
    extra: dict[str, Any] = {"group": group, "metavar": metavar, "shown": shown}
    key = "default_factory" if callable(default) else "default"
    return Field(**{key: default}, description=description, json_schema_extra=extra, **bounds)


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


def _split_names(value: Any) -> Any:
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    if isinstance(value, (list, tuple)) and not all(value):
        raise ValueError("an empty name; give names such as query,value.")
    return value


def _known_trackers(names: tuple[str, ...]) -> tuple[str, ...]:
    try:
        return known_trackers(names)
    except ConfigError as error:
        raise ValueError(str(error)) from None


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"{str(value).lower()} is not a number.")
    return value


def _full_dtype(value: Any) -> Any:
    return {"fp32": "float32", "bf16": "bfloat16"}.get(value, value) if isinstance(value, str) else value


Int = Annotated[int, BeforeValidator(_not_bool)]
Float = Annotated[float, BeforeValidator(_not_bool)]


# These see the fields before their own, but not those that turned out wrong (the whole is refused then).
def _default_partitioner(given: dict[str, Any]) -> Partitioner:
    return "natural" if given.get("client_column") is not None else "dirichlet"


def _default_num_clients(given: dict[str, Any]) -> int | None:
    return None if given.get("partitioner") == "natural" else DEFAULT_NUM_CLIENTS


def _default_rank_budget(given: dict[str, Any]) -> int:
    r: int = given.get("r", 1)
    selects = "method" in given and get_method(given["method"]).select is not None
    return min(DEFAULT_RANK_BUDGET, r) if selects else r


class RunConfig(BaseModel):
    """Everything that determines a run. None stands for "not given"; such defaults are described at the field.

    Raises:
        ConfigError: one line that names each wrong option, what was given and what is expected.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=kebab, populate_by_name=True, allow_inf_nan=False
    )

    data: str = _option(
        "helpdesk",
        "Data",
        "helpdesk, banking77, 20newsgroups, a file (csv, tsv, jsonl, parquet; plain or gz), a folder with train.* and "
        "test.*, or a hub data set.",
    )
    text_column: str | None = _option(None, "Data", "Column of the texts; found by itself where the name is usual.")
    label_column: str | None = _option(None, "Data", "Column of the labels; found by itself where the name is usual.")
    client_column: str | None = _option(None, "Data", "Column that tells whose example it is.")
    test_data: str | None = _option(None, "Data", "File with the test examples.", metavar="FILE")
    test_fraction: Float | None = _option(
        None, "Data", "Share of the training set held out for testing where the data have no test set.", gt=0, lt=1
    )
    max_examples: Int | None = _option(
        None, "Data", "Size of a stratified part of the training set, for a quick try.", gt=0
    )
    max_test_examples: Int | None = _option(None, "Data", "Size of a stratified part of the test set, likewise.", gt=0)
    validation_fraction: Float | None = _option(
        None,
        "Data",
        "Hold out this share of the training set and evaluate on it in place of the test set, to tune options.",
        gt=0,
        lt=1,
    )
    strip_newsgroups: bool = _option(True, "Data", "Take headers, footers and quotes off 20 Newsgroups articles.")

    partitioner: Partitioner = _option(
        _default_partitioner,
        "Clients",
        "How examples are split over clients.",
        shown="dirichlet; natural with --client-column",
    )
    alpha: Float = _option(
        0.5, "Clients", "Concentration of the Dirichlet and the quantity split; small is uneven.", gt=0
    )
    num_clients: Int | None = _option(
        _default_num_clients,
        "Clients",
        "Number of clients.",
        shown=f"{DEFAULT_NUM_CLIENTS}; all of them with natural",
        ge=1,
        le=MOST,
    )
    min_client_examples: Int = _option(
        1, "Clients", "Leave out natural clients with fewer training examples than this.", ge=1
    )

    model: str = _option("all-MiniLM-L6-v2", "Model", "A known model, a folder, or a model of the hub.")
    target_modules: Annotated[tuple[str, ...], BeforeValidator(_split_names)] | None = _option(
        None, "Model", "Layers to adapt, by the ends of their names; all linear layers of the blocks where left out."
    )
    max_length: Int = _option(128, "Model", "Texts are cut after this many tokens.", ge=3, le=MOST)
    trust_remote_code: bool = _option(
        False,
        "Model",
        "Run Python that lies in the model's folder or repository. Only for models whose code you have read.",
    )
    head: Literal["frozen", "trained"] = _option("frozen", "Model", "Whether the classification head is trained.")
    head_scale: Float | None = _option(
        None, "Model", "Scale of the frozen head; the model's own default where left out.", gt=0
    )
    pooling: Literal["auto", "mean", "cls", "last"] = _option("auto", "Model", "How token vectors become one.")
    dtype: Annotated[Literal["auto", "float32", "bfloat16"], BeforeValidator(_full_dtype)] = _option(
        "auto", "Model", "Number type of the model's computation (fp32 and bf16 mean the same)."
    )
    device: str = _option("auto", "Model", "auto, cpu, cuda, cuda:1 and so on.")

    method: Annotated[str, AfterValidator(_known_method)] = _option(
        DEFAULT_METHOD, "Method", f"The algorithm: {', '.join(METHODS)}."
    )
    r: Int = _option(16, "Method", "Rank of the server's adapter.", ge=1, le=65535)
    lora_alpha: Float = _option(16.0, "Method", "The adapter is scaled by lora-alpha / r.", gt=0)
    rank_budget: Annotated[RankBudget, PlainValidator(_rank_budget)] = _option(
        _default_rank_budget,
        "Method",
        "Ranks a module that a client may upload: a number, a list with one for each client, or a distribution.",
        metavar=f"N|N,N,...|{'|'.join(DISTRIBUTIONS)}",
        shown=f"{DEFAULT_RANK_BUDGET} for methods that select ranks, else r",
    )
    criterion: Literal["contribution", "magnitude", "sensitivity", "random"] | None = _option(
        None,
        "Method",
        "What ranks are selected by, for methods that select them.",
        metavar="|".join(CRITERIA),
        shown="contribution",
    )
    probe: ProbeName | None = _option(
        None,
        "Method",
        "How clients find the ranks to select: by an epoch of its own (the paper's), by the first local epoch, or by "
        "gradients at the start.",
        shown=DEFAULT_PROBE,
    )
    probe_batches: Int | None = _option(
        None,
        "Method",
        "Batches whose gradients the gradient probe takes.",
        shown=str(DEFAULT_PROBE_BATCHES),
        ge=1,
        le=MOST,
    )
    alternating: bool | None = _option(
        None, "Method", "Whether B and A take turns, for methods with this switch; off, A is frozen.", shown="on"
    )
    laplace_epsilon: Float | None = _option(
        None,
        "Method",
        "Add Laplace noise of scale 2 · laplace-clipping-norm · learning rate / this to uploads, to reproduce Table 4 of the "
        "paper; no proof of privacy. In simulations only.",
        gt=0,
    )
    laplace_clipping_norm: Float = _option(
        DEFAULT_CLIPPING_NORM, "Method", "L1 norm to which gradients are clipped with laplace-epsilon.", gt=0
    )
    wire_dtype: Literal["fp32", "fp16"] = _option("fp32", "Method", "Number type of what is sent.")

    num_server_rounds: Int = _option(10, "Training", "Number of server rounds.", ge=1, le=MOST)
    fraction_train: Float = _option(1.0, "Training", "Share of the clients that train in a round.", gt=0, le=1)
    local_epochs: Int = _option(2, "Training", "Epochs that a client trains in a round.", ge=1, le=MOST)
    batch_size: Int = _option(16, "Training", "Examples in a client's batch.", ge=1, le=MOST)
    learning_rate: Float | None = _option(
        None, "Training", "Learning rate of A; the default of method and model where left out.", gt=0
    )
    learning_rate_ratio: Float | None = _option(
        None, "Training", "Learning rate of B over that of A; the method's default where left out.", gt=0
    )
    weight_decay: Float = _option(0.01, "Training", "Weight decay of AdamW.", ge=0)
    max_update_ratio: Float | None = _option(
        None,
        "Training",
        "Refuse a client that moves farther than AdamW can, or than so many times the median of the last rounds, by the root of "
        "its local steps; 0: refuse none.",
        shown="0; 10 where the clients are nodes",
        ge=0,
    )
    seed: Int = _option(0, "Training", "Determines every random number.", ge=0)

    eval_every: Int = _option(1, "Run", "Evaluate after every so many rounds, and after the last.", ge=1)
    cohort_size: Int | None = _option(
        None, "Run", "Clients in one forward pass; where left out, one on a CPU and all of the round on a GPU.", ge=1
    )
    num_workers: Int | None = _option(
        None, "Run", "Forward passes side by side; one a core on a CPU where left out. Changes no result.", ge=1
    )
    record_analysis: bool = _option(
        True, "Run", "Record what 'lora-a2 analyze' reads: labels by client, selected ranks, how alike updates are."
    )
    output_dir: str | None = _option(
        None,
        "Run",
        "The run directory; a new one in runs/ named after data, method and time where left out.",
        metavar="FOLDER",
    )

    report_to: Annotated[tuple[str, ...], BeforeValidator(_split_names), AfterValidator(_known_trackers)] | None = (
        _option(
            None,
            "Run",
            f"Trackers that are told of every round: {', '.join(TRACKERS)}; each is an extra.",
            shown="none",
        )
    )

    @model_validator(mode="before")
    @classmethod
    def _drop_none(cls, values: Any) -> Any:
        """None means "not given", so that dependent defaults apply."""
        return {k: v for k, v in values.items() if v is not None} if isinstance(values, Mapping) else values

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.partitioner == "natural" and self.client_column is None:
            raise ConfigError("client-column: the natural partitioner needs it; name the column of the clients.")
        if self.test_data is not None and self.test_fraction is not None:
            raise ConfigError("test-fraction: it has nothing to hold out beside test-data; give one of them.")
        for role, column in (("label", self.label_column), ("client", self.client_column)):
            if self.text_column is not None and self.text_column == column:
                raise ConfigError(f"text-column: {column!r} is the {role}-column too; name another for one of them.")
        if self.test_data is not None and self.validation_fraction is not None:
            raise ConfigError("test-data: validation-fraction takes the place of the test set; give one of them.")
        check_effects(self)
        check_budgets(self.rank_budget, self.r)
        if isinstance(self.rank_budget, tuple) and self.num_clients is not None and self.partitioner != "natural":
            check_length(self.rank_budget, self.num_clients)
        get_probe(self.chosen_method(), self.probe, self.probe_batches)
        make_noise(self.laplace_epsilon, self.laplace_clipping_norm, full=self.chosen_method().full)
        if self.max_update_ratio and self.laplace_epsilon is not None:
            raise ConfigError("max-update-ratio: noise of laplace-epsilon moves replies too; give one of them.")
        if not get_method(self.method).mixed_ranks and len(set(budget_values(self.rank_budget))) > 1:
            mixed = ", ".join(m.name for m in METHODS.values() if m.mixed_ranks)
            raise ConfigError(
                f"rank-budget: {self.method} needs the same for every client; give one number, or use {mixed}."
            )
        return self

    def data_options(self) -> dict[str, Any]:
        """The arguments of `load_data`."""
        names = ("text_column", "label_column", "client_column", "test_data", "test_fraction", "validation_fraction")
        more = ("max_examples", "max_test_examples", "strip_newsgroups", "seed")
        return {"data": self.data, **{name: getattr(self, name) for name in (*names, *more)}}

    def split_options(self) -> dict[str, Any]:
        """The arguments that tell how examples are split over clients."""
        names = ("partitioner", "num_clients", "alpha", "min_client_examples", "seed")
        return {name: getattr(self, name) for name in names}

    def chosen_method(self) -> Method:
        """The method with its switches.

        Raises:
            ConfigError: it has no such switch.
        """
        return get_method(self.method, criterion=self.criterion, alternating=self.alternating)

    @model_validator(mode="wrap")  # last, so that it is outermost
    @classmethod
    def _in_one_line(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(values)
        except ValidationError as error:
            raise ConfigError(one_line(error, list(map(kebab, RunConfig.model_fields)))) from None


def fields_of(*groups: str) -> list[str]:
    """The names of the fields in these groups, in their order."""

    extras = {name: field.json_schema_extra for name, field in RunConfig.model_fields.items()}
    return [name for name, extra in extras.items() if isinstance(extra, dict) and extra["group"] in groups]


def make_config(file_values: Mapping[str, Any], flag_values: Mapping[str, Any]) -> RunConfig:
    """The configuration of a file and of flags; flags win, and a flag that is None was not given.

    Raises:
        ConfigError: as `RunConfig`.
    """
    given = {key: value for key, value in flag_values.items() if value is not None}
    return RunConfig.model_validate({kebab(key): value for key, value in [*file_values.items(), *given.items()]})


def load_config(path: str | Path) -> dict[str, Any]:
    """The values of a TOML file by kebab-case key, not validated yet.

    Raises:
        ConfigError: the file cannot be read, is not TOML (the message has line and column), or has a key twice.
    """
    try:
        values = tomllib.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"Cannot read the configuration {str(path)!r}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"Cannot read the configuration {str(path)!r}: it is not UTF-8 text.") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {' '.join(str(error).split())}.") from None
    result: dict[str, Any] = {}
    for key, value in values.items():
        if kebab(key) in result:
            raise ConfigError(f"{path} gives {kebab(key)!r} twice, with hyphens and with underscores; keep one.")
        result[kebab(key)] = value
    return result


def dump_config(config: RunConfig) -> str:
    """TOML text that loads back as an equal configuration; values that are None are left out.

    So is leave to run a model's code: a file must not give it to who reads it later.
    """
    import tomlkit

    document = tomlkit.document()
    for key, value in config.model_dump(by_alias=True, exclude_none=True, exclude={"trust_remote_code"}).items():
        document.add(key, list(value) if isinstance(value, tuple) else value)
    return tomlkit.dumps(document)
