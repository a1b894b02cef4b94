"""An experiment file: which runs a sweep consists of, how their learning rates are tuned, and how its table is laid out.

    title = "…"
    [run]               options of every run, as in a configuration file
    [grid]              option → list of values: every combination is run
    [arms.NAME]         what is compared, each with options of its own …
    [arms.NAME.grid]    … and a grid of its own
    [tune]              learning-rates or learning-rate-multiples (of the rate a run would have): the candidates of every arm
    per = ["data"]      options for each of whose values a rate is chosen apart
    [tune.run]          options of the tuning runs; what they fix leaves the grids
    [tune.arms.NAME]    likewise of one arm
    [table]             rows and columns: lists of options, "arm" among them, how the table is laid out; at-rounds: rounds after
                        which the task's primary metric is shown too
    [published]         columns: heads of the table; NAME OF A ROW → its figures as published (%, if ours are), one a head
    [profiles.NAME]     the same sections again, which win, when this profile is chosen; only = arms that take part

The profile "published" is the file without any profile.
"""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_a2.config.run import RunConfig, make_config
from lora_a2.errors import ConfigError
from lora_a2.settings.errors import kebab

PUBLISHED = "published"
_SECTIONS = {"title", "run", "grid", "arms", "tune", "table", "published", "profiles", "only"}
_TUNE = {"learning-rates", "learning-rate-multiples", "per", "run", "arms"}
_TABLE = {"rows", "columns", "at-rounds"}
_SHORT = {"learning-rate": "lr", "rank-budget": "rank", "num-server-rounds": "rounds", "num-clients": "clients"}

Values = Mapping[str, Any]


_ARM = re.compile(r"[^\W_][\w .+-]*")


@dataclass(frozen=True)
class Arm:
    """One of the things compared: its options by kebab-case key, and its own grid."""

    name: str
    values: Values
    grid: Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Tuning:
    """Candidates are `rates`, or `multiples` of the rate that a run would have; one of them is empty.

    `per`: options for each of whose values a rate is chosen apart. `values` and `arms` (by name): options of the runs.
    """

    rates: tuple[float, ...]
    multiples: tuple[float, ...]
    per: tuple[str, ...]
    values: Values
    arms: Mapping[str, Values]


@dataclass(frozen=True)
class Experiment:
    """An experiment in one profile; see the module's docstring. `published`: (row, head of the column) → figure."""

    title: str
    values: Values
    grid: Mapping[str, Sequence[Any]]
    arms: tuple[Arm, ...]
    tuning: Tuning | None
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    at_rounds: tuple[int, ...] = ()
    published: Mapping[tuple[str, str], float] = field(default_factory=dict)


@dataclass(frozen=True)
class Point:
    """One run to be: its name, its arm, and its options by kebab-case key."""

    name: str
    arm: str
    values: Values

    def config(self, flags: Values) -> RunConfig:
        """Its configuration; `flags` win.

        Raises:
            ConfigError: an option that does not fit; the message names the arm.
        """
        try:
            return make_config(self.values, flags)
        except ConfigError as error:
            raise ConfigError(f"{self.arm}: {error}") from None


def parse_experiment(text: str, profile: str, source: str = "the experiment") -> Experiment:
    """An experiment file's content in a profile.

    Raises:
        ConfigError: it is not TOML, has sections or options that do not exist, or no such profile.
    """
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source} is not valid TOML: {' '.join(str(error).split())}.") from None
    profiles = raw.pop("profiles", {})
    if profile != PUBLISHED and profile not in profiles:
        raise ConfigError(f"{source} has no profile '{profile}': choose one of {', '.join([PUBLISHED, *profiles])}.")
    try:
        return _experiment(_merged(raw, profiles.get(profile, {})))
    except (TypeError, AttributeError, ValueError) as error:
        raise ConfigError(f"{source} is not laid out as an experiment: {error}.") from None
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def _experiment(raw: dict[str, Any]) -> Experiment:
    _check_known(raw, _SECTIONS, "section")
    arms = tuple(_arm(name, dict(values)) for name, values in raw.get("arms", {}).items())
    if "only" in raw:
        _check_known(dict.fromkeys(raw["only"]), {arm.name for arm in arms}, "arm")
        arms = tuple(arm for arm in arms if arm.name in raw["only"])
    if not arms:
        raise ConfigError("it has no [arms.NAME]: there is nothing to run.")
    table = raw.get("table", {})
    _check_known(table, _TABLE, "option of [table]")
    for laid_out in ("rows", "columns"):
        _check_keys(table.get(laid_out, ()), {"arm"}, f"option in [table] {laid_out}")
    return Experiment(
        title=str(raw.get("title", "")),
        values=_options(raw.get("run", {}), "run"),
        grid=_grid(raw.get("grid", {}), "grid"),
        arms=arms,
        tuning=_tuning(raw["tune"]) if raw.get("tune") else None,
        rows=tuple(table.get("rows", ())),
        columns=tuple(table.get("columns", ())),
        at_rounds=tuple(map(int, table.get("at-rounds", ()))),
        published=_published(raw.get("published", {})),
    )


def _published(raw: Mapping[str, Sequence[Any]]) -> dict[tuple[str, str], float]:
    heads = raw.get("columns", ())
    rows = {row: figures for row, figures in raw.items() if row != "columns"}
    wrong = [row for row, figures in rows.items() if len(figures) != len(heads)]
    if wrong:
        raise ConfigError(f"[published] {wrong[0]} has {len(rows[wrong[0]])} figures for {len(heads)} columns.")
    return {(row, str(head)): float(x) for row, xs in rows.items() for head, x in zip(heads, xs, strict=True)}


def _arm(name: str, values: dict[str, Any]) -> Arm:
    if not _ARM.fullmatch(name):
        raise ConfigError(
            f"the arm {name!r} cannot name a folder: use letters, digits, blanks, hyphens, plus signs, dots and underscores, and "
            "begin with a letter or a digit."
        )
    grid = _grid(values.pop("grid", {}), f"arms.{name}.grid")
    return Arm(name, _options(values, f"arms.{name}"), grid)


def _tuning(raw: Mapping[str, Any]) -> Tuning:
    _check_known(raw, _TUNE, "option of [tune]")
    rates, multiples = (tuple(map(float, raw.get(f"learning-rate{s}", ()))) for s in ("s", "-multiples"))
    if bool(rates) == bool(multiples):
        raise ConfigError("[tune] needs learning-rates or learning-rate-multiples, one of them.")
    _check_keys(raw.get("per", ()), set(), "option in [tune] per")
    arms = {name: _options(values, f"tune.arms.{name}") for name, values in raw.get("arms", {}).items()}
    return Tuning(rates, multiples, tuple(raw.get("per", ())), _options(raw.get("run", {}), "tune.run"), arms)


def _check_keys(keys: Sequence[str], more: set[str], what: str) -> None:
    """Refuses keys that are neither options of a run nor among `more`."""
    _check_known(dict.fromkeys(keys), {*map(kebab, RunConfig.model_fields), *more}, what)


def _options(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    given = {kebab(key): value for key, value in values.items()}
    _check_known(given, set(map(kebab, RunConfig.model_fields)), f"option in [{where}]")
    return given


def _grid(values: Mapping[str, Any], where: str) -> dict[str, Sequence[Any]]:
    grid = _options(values, where)
    for key, choices in grid.items():
        if not isinstance(choices, list) or not choices:
            raise ConfigError(f"[{where}] {key} is {choices!r}: expected a list of values to run.")
    return grid


def _check_known(given: Mapping[str, Any], known: set[str], what: str) -> None:
    unknown = [key for key in given if key not in known]
    if unknown:
        raise ConfigError(f"there is no {what} '{unknown[0]}': there are {', '.join(sorted(known))}.")


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with what `over` says in its place; tables are merged, everything else is replaced."""
    both = {key: _merged(base[key], over[key]) for key in base.keys() & over.keys() if isinstance(base[key], dict)}
    return {**base, **over, **both}


def points(experiment: Experiment, fixed: Values, arms: Mapping[str, Values] | None = None) -> list[Point]:
    """Every run of an experiment, arm by arm. `fixed` options, and those of `arms` by name, win and leave the grids."""
    found: list[Point] = []
    for arm in experiment.arms:
        pinned = {**fixed, **(arms or {}).get(arm.name, {})}
        grid = {k: v for k, v in {**experiment.grid, **arm.grid}.items() if k not in pinned}
        base = {**experiment.values, **arm.values}
        found += [Point(_name(arm.name, chosen), arm.name, {**base, **chosen, **pinned}) for chosen in _product(grid)]
    return _distinct(found)


def _product(grid: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def _name(arm: str, chosen: Values) -> str:
    """The arm, then each value chosen: lora-a2-rank1-alpha0.1-seed0."""
    parts = [f"{_SHORT.get(key, key)}{_text(value)}" for key, value in chosen.items()]
    return re.sub(r"[^\w.+-]+", "_", "-".join([arm, *parts]))


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "+".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value).rstrip("/").rpartition("/")[2]


def _distinct(found: Sequence[Point]) -> list[Point]:
    names = [point.name for point in found]
    double = {name for name in names if names.count(name) > 1}
    if double:
        raise ConfigError(f"two runs would have the name '{min(double)}'; give their values different names.")
    return list(found)


def varied(found: Sequence[Point]) -> list[str]:
    """The options in which the points differ, in order of their first appearance."""
    keys = list(dict.fromkeys(key for point in found for key in point.values))
    return [key for key in keys if len({repr(point.values.get(key)) for point in found}) > 1]


def in_data_root(values: Values, root: Path | None) -> dict[str, Any]:
    """The options with the data sets that lie in the folder `root` taken from there."""
    if root is None:
        return dict(values)
    there = {key: root / str(values[key]) for key in ("data", "test-data") if key in values}
    return {**values, **{key: str(path) for key, path in there.items() if path.exists()}}
