"""Groups of options: small frozen models, each beside what it is for. `config.run.RunConfig` is all of them together.

A field is an option, declared once: its type, default, help and marks are all that command line, TOML files, sweeps and
Flower apps know of it. Keys are kebab-case there; snake_case is understood too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeVar, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    create_model,
    model_validator,
)
from pydantic.fields import FieldInfo

from lora_a2.core.names import known_name
from lora_a2.core.options import Option
from lora_a2.errors import ConfigError
from lora_a2.settings.errors import kebab, one_line

MOST = 1_000_000
"""Bound of whole numbers that nothing else bounds: above it is a slip of the finger."""

Reach = Literal["nodes", "simulation", "nobody"]
"""Who is told of an option if the clients are Flower's. "nodes": a node takes it from whoever asks, so that it must be
harmless there. "simulation": only clients of Flower's simulation engine take it. "nobody": it is the server's own."""


class Effect(NamedTuple):
    """An option acts only if `acts` says so of all options together; `needs` tells a user what that takes."""

    acts: Callable[[Any], bool]
    needs: str


@dataclass(frozen=True)
class Marks:
    """What is known of an option beside its type, its default and its help.

    Attributes:
        group: its heading in help.
        metavar: what stands for its value in help; None: from the type.
        shown: its default in words, if it depends on other options.
        reach: who is told of it.
        app: whether a Flower app has a key for it.
        effect: if it acts; None: everywhere.
    """

    group: str
    metavar: str | None = None
    shown: str | None = None
    reach: Reach = "simulation"
    app: bool = True
    effect: Effect | None = None


def option(
    default: Any,
    group: str,
    description: str,
    *,
    metavar: str | None = None,
    shown: str | None = None,
    reach: Reach = "simulation",
    app: bool = True,
    effect: Effect | None = None,
    **bounds: Any,
) -> Any:
    """A field of a group, with the marks of `Marks`; a function as `default` is given the fields before it."""
    key = "default_factory" if callable(default) else "default"
    extra: Any = {"marks": Marks(group, metavar, shown, reach, app, effect)}
    return Field(**{key: default}, description=description, json_schema_extra=extra, **bounds)


def marks_of(field: FieldInfo) -> Marks:
    """The marks that a field was declared with."""
    extra: Any = field.json_schema_extra
    found: Marks = extra["marks"]
    return found


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"{str(value).lower()} is not a number.")
    return value


def split_names(value: Any) -> Any:
    """Names from a text such as "query,value"; for validators."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    if isinstance(value, (list, tuple)) and not all(value):
        raise ValueError("an empty name; give names such as query,value.")
    return value


def among(names: Iterable[str]) -> AfterValidator:
    """A validator for the names of a table's rows, in any case."""
    known = tuple(names)

    def check(name: str) -> str:
        name = known_name(name, known)
        if name not in known:
            raise ValueError(f"{name!r} is not one of {', '.join(known)}.")
        return name

    return AfterValidator(check)


Int = Annotated[int, BeforeValidator(_not_bool)]
Float = Annotated[float, BeforeValidator(_not_bool)]

Group = TypeVar("Group", bound="Options")


class Options(BaseModel):
    """A group of options. None stands for "not given"; such defaults are described at the field.

    Raises:
        ConfigError: one line that names each wrong option, what was given and what is expected.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=kebab, populate_by_name=True, allow_inf_nan=False
    )

    def part(self, group: type[Group]) -> Group:
        """The options of one of the groups that these are made of."""
        return group.model_construct(**{name: getattr(self, name) for name in group.model_fields})

    @model_validator(mode="before")
    @classmethod
    def _drop_none(cls, values: Any) -> Any:
        """None means "not given", so that dependent defaults apply."""
        return {k: v for k, v in values.items() if v is not None} if isinstance(values, Mapping) else values

    @model_validator(mode="before")
    @classmethod
    def _any_case(cls, values: Any) -> Any:
        """Words from a list may be typed in any case."""
        if not isinstance(values, Mapping):
            return values
        words = {
            key: _words(field.annotation) for name, field in cls.model_fields.items() for key in (name, kebab(name))
        }
        return {k: known_name(v, words.get(k, ())) if isinstance(v, str) else v for k, v in values.items()}

    @model_validator(mode="wrap")
    @classmethod
    def _in_one_line(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(values)
        except ValidationError as error:
            raise ConfigError(one_line(error, list(map(kebab, cls.model_fields)))) from None


def _words(annotation: Any) -> tuple[str, ...]:
    """The words that a type allows."""
    if get_origin(annotation) is Literal:
        return tuple(word for word in get_args(annotation) if isinstance(word, str))
    return tuple(word for part in get_args(annotation) for word in _words(part))


def declaring(options: Iterable[Option], group: str) -> Callable[[type[Group]], type[Group]]:
    """A decorator for a group that gains a field for each option that methods declare; None there is "not given".

    Two methods may share an option, if it is the same in all.
    """
    known: dict[str, Option] = {}
    for each in options:
        if known.setdefault(each.name, each) != each:
            raise TypeError(f"two methods declare different options called {each.name}")

    def decorate(base: type[Group]) -> type[Group]:
        if taken := set(known) & set(base.model_fields):
            raise TypeError(f"a method's option has the name of another option: {sorted(taken)}")
        fields: dict[str, Any] = {name: _field(each, group) for name, each in known.items()}
        return create_model(base.__name__, __base__=base, __module__=base.__module__, __doc__=base.__doc__, **fields)

    return decorate


def _field(declared: Option, group: str) -> tuple[Any, Any]:
    """Type and field of an option that a method declares."""
    kinds: dict[type, Any] = {bool: bool, int: Int, float: Float}
    kind = Literal[declared.choices] if declared.choices else kinds[type(declared.default)]
    shown = str(declared.default)
    if isinstance(declared.default, bool):
        shown = "on" if declared.default else "off"
    bounds = {"ge": declared.least, "le": declared.most, "gt": declared.above}
    given: dict[str, Any] = {name: bound for name, bound in bounds.items() if bound is not None}
    return kind | None, option(None, group, declared.help, shown=shown, reach="nodes", **given)
