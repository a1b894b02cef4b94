"""Command line options made from the fields of `RunConfig`."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import click
from pydantic.fields import FieldInfo

from lora_a2.config.run import RunConfig
from lora_a2.settings.errors import kebab
from lora_a2.settings.options import marks_of

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class FieldOption(click.Option):
    """An option with the heading under which help lists it."""

    def __init__(self, *args: Any, group: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group


class GroupedCommand(click.Command):
    """A command whose help lists options under headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The command's own options, then the fields by group."""
        groups: dict[str, list[tuple[str, str]]] = {"Options": []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is not None:
                groups.setdefault(getattr(param, "group", "Options"), []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)


def field_options(names: Iterable[str] | None = None) -> Callable[[Decorated], Decorated]:
    """A decorator that adds an option for each named field of `RunConfig` (None: for all).

    Values arrive as text, or None if the option is not given; `make_config` checks them.
    """

    def decorate(function: Decorated) -> Decorated:
        for name in reversed(list(RunConfig.model_fields if names is None else names)):
            function = _option(name, RunConfig.model_fields[name])(function)
        return function

    return decorate


def _option(name: str, field: FieldInfo) -> Callable[[Decorated], Decorated]:
    marks = marks_of(field)
    kinds = _kinds(field.annotation)
    flag = f"--{kebab(name)}"
    shown = marks.shown or field.get_default()
    if bool in kinds:
        flag, shown = f"{flag}/--no-{kebab(name)}", "on" if shown else "off"
    text = field.description or ""
    short = [f"-{name}"] if len(name) == 1 else []  # who types -r means --r
    return click.option(
        *short,
        flag,
        name,
        cls=FieldOption,
        group=marks.group,
        default=None,
        metavar=None if bool in kinds else marks.metavar or _metavar(kinds),
        help=text if shown is None else f"{text}  [default: {shown}]",
        **({} if bool in kinds else {"type": str}),
    )


def _kinds(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a field's type, without None and without annotations."""
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(kind for part in get_args(annotation) for kind in _kinds(part) if kind is not type(None))
    if hasattr(annotation, "__metadata__"):
        return _kinds(get_args(annotation)[0])
    return (annotation,)


def _metavar(kinds: tuple[Any, ...]) -> str:
    for kind in kinds:
        if get_origin(kind) is Literal:
            return "|".join(get_args(kind))
        if get_origin(kind) is tuple:
            return "NAME,NAME,..."
    return {int: "N", float: "X"}.get(kinds[0], "TEXT")
