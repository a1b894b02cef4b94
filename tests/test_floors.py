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
DESIGN = Path(__file__).parents[1] / "docs" / "design.md"
BEGIN, END = "<!-- drawn by tests/test_floors.py -->", "<!-- end of the drawing -->"

FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("core", "system"),
    ("codec", "methods"),
    ("settings",),
    ("data", "privacy"),
    ("engine",),
    ("tasks",),
    ("model",),
    ("federation",),
    ("trackers", "analysis"),
    ("config",),
    ("simulation", "node"),
    ("runs",),
    ("flower", "display"),
    ("studies", "report"),
    ("commands", "cli"),
    ("__init__",),
)
"""Lowest first; a row names modules or whole rooms. Imports go to strictly lower rows, under TYPE_CHECKING and inside functions
too; inside one room they are free, but make no circle."""
ROOMS = {
    "errors": "every error that a user sees",
    "core": "values and exact maths: types, algebra, selection, randomness, budgets, sampling",
    "system": "files, locks, signals, child processes, text for terminals",
    "codec": "the wire",
    "methods": "the method record, one file a method, the registry",
    "settings": "what groups of options are made of; each group lies beside what it is for",
    "privacy": "mechanisms",
    "data": "sources, columns, partitions",
    "analysis": "statistics of a run's record",
    "engine": "local training of clients; `engine/kernels` holds what is compiled, and its twins",
    "tasks": "what a model is fine-tuned for: loss, metrics, encoding; one file, or one room, a task",
    "model": "what is loaded and saved: backbones, catalogue, PEFT files",
    "federation": "one round and the loop: agreement, client half, server half, population, records, cost",
    "trackers": "TensorBoard, MLflow, Weights & Biases",
    "config": "the configuration of a run, and what it stands for",
    "simulation": "the in-process driver",
    "node": "the resident worker of a node",
    "runs": "the run directory, launching, resuming, predicting",
    "flower": "the driver over Flower's grid, and its deployments",
    "display": "what a terminal shows of a run",
    "studies": "comparisons, sweeps, experiments",
    "report": "the HTML page",
    "commands": "one file a command",
    "cli": "the command line",
    "__init__": "the public names",
}
NO_TORCH_UP_TO = 3
"""The rows below this one are pure: NumPy, no torch."""

PROGRAM = {
    "cli.py",
    "__init__.py",
    "runs/environment.py",
    "runs/export.py",
    "flower/app_folder.py",
    "flower/local.py",
    "flower/node_checks.py",
    "report/detail.py",
    "report/render.py",
    "trackers/mlflow.py",
    "trackers/wandb.py",
    "system/invocation.py",
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
    assert {"codec.frame", "methods.lora_a2", "engine.lora", "engine.kernels.skinny", "commands.run"} <= names
    assert sum("." in name for name in names) > 25
    assert {height(name) for name in names} == set(range(len(FLOORS)))
    assert "model.pretrained" in set(own_imports(ROOT / "__init__.py"))
    assert "codec" in set(own_imports(ROOT / "federation" / "exchange.py"))


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_point_down(path: Path) -> None:
    here = module_name(path)
    for there in own_imports(path):
        same_package = here.split(".")[0] == there.split(".")[0] and row(here) == row(there)
        assert same_package or height(there) < height(here), f"{here} imports {there}, which is not below it"


def test_there_are_no_circles() -> None:
    """Free imports inside a room still make no knot, not for annotations either."""
    names = {module_name(path) for path in FILES}
    graph = {module_name(path): set(own_imports(path)) & names for path in FILES}
    done: set[str] = set()
    while ready := [name for name in graph if name not in done and graph[name] - {name} <= done]:
        done |= set(ready)
    assert done == set(graph), f"in or behind a circle: {sorted(set(graph) - done)}"


def test_few_modules_lie_flat() -> None:
    assert len([path for path in ROOT.glob("*.py") if path.name != "__init__.py"]) <= 6


def test_every_room_is_described() -> None:
    assert set(ROOMS) == {room for floor in FLOORS for room in floor}


def drawn() -> str:
    """The table of floors, and the drawing of what imports what."""
    rows = [f"| {i} | `{room}` | {ROOMS[room]} |" for i, floor in enumerate(FLOORS) for room in floor]
    table = "\n".join(["| floor | room | what it is |", "| --- | --- | --- |", *rows])
    edges: set[tuple[str, str]] = set()
    for path in FILES:
        here = row(module_name(path))
        edges |= {(here, row(there)) for there in own_imports(path)} - {(here, here)}
    # An arrow that follows from two others is left out, and so are errors, which everyone imports.
    edges = {(a, b) for a, b in edges if b != "errors" and a not in ("__init__", "cli")}
    reach: dict[str, set[str]] = {}
    for floor in FLOORS:
        for room in floor:
            below = {b for a, b in edges if a == room}
            reach[room] = below | {c for b in below for c in reach[b]}
    direct = {(a, b) for a, b in edges if not any(b in reach[c] for x, c in edges if x == a and c != b)}
    arrows = "\n".join(f"  {a} --> {b}" for a, b in sorted(direct))
    return f"{table}\n\n```mermaid\nflowchart TD\n{arrows}\n```\n"


def page() -> tuple[str, str, str]:
    """The design's text before, inside and after the part that is drawn."""
    text = DESIGN.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    inside, _, after = rest.partition(END)
    return before + BEGIN, inside, END + after


def test_the_design_shows_the_house_as_it_is() -> None:
    assert page()[1].strip() == drawn().strip(), "run: python tests/test_floors.py"


def test_the_lower_floors_are_pure() -> None:
    low = [path for path in FILES if height(module_name(path)) < NO_TORCH_UP_TO]
    assert len(low) > 12
    for path in low:
        heavy = outside(path) & {"torch", "transformers", "peft", "datasets", "pandas", "pydantic", "flwr"}
        assert not heavy, f"{path.name} imports {heavy}"


def test_methods_stand_alone() -> None:
    files = [path for path in FILES if path.parent == ROOT / "methods" and path.name not in ("__init__.py", "base.py")]
    assert len(files) == len(METHODS)
    for path in files:
        known = {name for name in own_imports(path) if name.startswith("methods")}
        assert known <= {"methods.base"}, f"{path.name} knows another"
        assert outside(path) <= {
            "__future__",
            "lora_a2",
            "numpy",
            "dataclasses",
            "collections",
            "functools",
            "math",
            "typing",
        }


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


if __name__ == "__main__":
    head, _, tail = page()
    DESIGN.write_text(f"{head}\n{drawn()}{tail}", encoding="utf-8")
