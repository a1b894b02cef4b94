"""The house has floors: a walk over the syntax tree of every source file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import lora_a2
from lora_a2.methods import DEFAULT_METHOD, METHODS

ROOT = Path(lora_a2.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "types", "text", "data.shares"),
    (
        "randomness",
        "files",
        "locks",
        "signals",
        "lifeline",
        "algebra",
        "selection",
        "codec",
        "privacy",
        "budgets",
        "data.partition",
    ),
    ("cohorts", "method", "records", "journal"),
    ("methods",),
    ("model", "data", "cost", "analysis"),
    ("training",),
    ("probes",),
    ("clients",),
    ("bounds",),
    ("screening",),
    ("exchange",),
    ("rounds", "checkpoints"),
    ("runs", "progress", "config_errors", "effects", "driver", "plans", "recording"),
    ("simulation", "predict", "environment", "report"),
    ("trackers",),
    ("config",),
    ("setup",),
    ("jobs", "node"),
    ("batch", "experiment", "results", "flower"),
    ("compare", "sweep", "execution"),
    ("display",),
    ("worker",),
    ("commands", "cli"),
    ("__init__",),
)
"""The floors of design.md, each cut into as many as there are, lowest first. A row is a module or a whole package.

Imports go to strictly lower rows, under TYPE_CHECKING and inside functions too. Inside one package they are free.
"""
NO_TORCH_UP_TO = 4
"""The rows below this one are pure: NumPy, no torch."""

PROGRAM = {
    "cli.py",
    "__init__.py",
    "environment.py",
    "flower/app_folder.py",
    "flower/local.py",
    "report/detail.py",
    "report/render.py",
    "trackers/mlflow.py",
    "trackers/wandb.py",
}
"""Where "lora-a2" is the name of the program or the distribution, not of the method."""


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def row(module: str) -> str:
    """The entry of `FLOORS` that a module belongs to, by its longest prefix."""
    entries = [entry for floor in FLOORS for entry in floor if f"{module}.".startswith(f"{entry}.")]
    assert entries, f"{module} has no floor: add it to FLOORS"
    return max(entries, key=len)


def height(module: str) -> int:
    return next(i for i, floor in enumerate(FLOORS) if row(module) in floor)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(path: Path) -> frozenset[str]:
    """Every module imported anywhere in a file; `from lora_a2 import codec` is lora_a2.codec."""
    found: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            parts = {f"{module}.{alias.name}" for alias in node.names}
            inner = {part for part in parts if exists(part)}
            found |= inner | ({module} if len(inner) < len(parts) else set())
    return frozenset(found)


def exists(module: str) -> bool:
    path = ROOT.parent.joinpath(*module.split("."))
    return module.startswith("lora_a2") and (path.with_suffix(".py").is_file() or (path / "__init__.py").is_file())


def own_imports(path: Path) -> Iterator[str]:
    for name in imports(path):
        if name.split(".")[0] == "lora_a2":
            yield name.removeprefix("lora_a2.") if "." in name else "__init__"


def outside(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def test_the_walk_sees_every_file() -> None:
    names = {module_name(path) for path in FILES}
    assert len(FILES) > 40
    assert {"codec.frame", "methods.lora_a2", "model.lora", "training.local", "commands.run", "__init__"} <= names
    assert sum("." in name for name in names) > 25
    assert {height(name) for name in names} == set(range(len(FLOORS)))
    assert "model.pretrained" in set(own_imports(ROOT / "__init__.py"))
    assert "codec" in set(own_imports(ROOT / "exchange.py"))


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_point_down(path: Path) -> None:
    here = module_name(path)
    for there in own_imports(path):
        same_package = here.split(".")[0] == there.split(".")[0] and row(here) == row(there)
        assert same_package or height(there) < height(here), f"{here} imports {there}, which is not below it"


def test_packages_have_no_cycles() -> None:
    """Free imports inside a package still make no knot, but for names that only annotations need."""
    graph = {module_name(path): running_imports(path) & {module_name(p) for p in FILES} for path in FILES}
    done: set[str] = set()
    while ready := [name for name in graph if name not in done and graph[name] - {name} <= done]:
        done |= set(ready)
    assert done == set(graph), f"in or behind a cycle: {sorted(set(graph) - done)}"


def running_imports(path: Path) -> set[str]:
    """The project's own modules that importing a file imports at once."""
    body = tree(path).body
    top = ast.Module([node for node in body if isinstance(node, ast.Import | ast.ImportFrom)], [])
    names = {a.name for n in ast.walk(top) if isinstance(n, ast.Import) for a in n.names}
    for node in ast.walk(top):
        if isinstance(node, ast.ImportFrom):
            parts = {f"{node.module}.{a.name}" for a in node.names}
            names |= {p if exists(p) else str(node.module) for p in parts}
    return {name.removeprefix("lora_a2.") for name in names if name.startswith("lora_a2.")}


def test_the_lower_floors_are_pure() -> None:
    low = [path for path in FILES if height(module_name(path)) < NO_TORCH_UP_TO]
    assert len(low) > 12
    for path in low:
        heavy = outside(path) & {"torch", "transformers", "peft", "datasets", "pandas", "pydantic", "flwr"}
        assert not heavy, f"{path.name} imports {heavy}"


def test_methods_stand_alone() -> None:
    files = [path for path in FILES if path.parent == ROOT / "methods" and path.name != "__init__.py"]
    assert len(files) == len(METHODS)
    for path in files:
        assert not [name for name in own_imports(path) if name.startswith("methods")], f"{path.name} knows another"
        assert outside(path) <= {"__future__", "lora_a2", "numpy", "dataclasses", "collections", "functools", "math"}


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_flower_is_imported_by_its_driver_only(path: Path) -> None:
    assert "flwr" not in outside(path) or module_name(path).split(".")[0] == "flower"


def test_a_method_s_name_occurs_only_in_its_own_file() -> None:
    seen: dict[str, set[str]] = {name: set() for name in METHODS}
    for path in FILES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Constant) and node.value in seen:
                seen[node.value].add(path.relative_to(ROOT).as_posix())
    seen[DEFAULT_METHOD] -= PROGRAM
    for name, places in seen.items():
        assert places == {f"methods/{name.replace('-', '_')}.py"}, name


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_nothing_is_unpickled(path: Path) -> None:
    assert not outside(path) & {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) != ("torch", "load"), f"torch.load at line {node.lineno}"
            assert (node.value.id, node.attr) != ("torch", "save"), f"torch.save at line {node.lineno}"
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert isinstance(node.value, ast.Constant) and node.value.value is False
