"""The experiment file that docs/experiments.md shows is one, and the page names every section that there is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from federation import save_data
from lora_a2.cli import main
from lora_a2.errors import ConfigError
from lora_a2.studies import experiment
from lora_a2.studies.experiment import parse_experiment, points

PAGE = (Path(__file__).parents[2] / "docs" / "experiments.md").read_text(encoding="utf-8")


@pytest.fixture
def text() -> str:
    found = re.search(r"<!-- example: loaded by .*? -->\n```toml\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None, "docs/experiments.md has no example"
    return found[1]


def test_the_example_is_a_sweep_as_it_stands(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_data(tmp_path / "tickets.csv", 60)
    (tmp_path / "tickets.toml").write_text(text)
    commands = re.findall(r"^lora-a2 (sweep tickets\.toml .*?)(?: *#.*)?$", PAGE, re.MULTILINE)
    assert len(commands) == 2
    names = {}
    for command in commands:
        words = [word for word in command.split() if word != "--dry-run"]
        assert main([*words, "--dry-run", "--json"]) == 0
        names[words[-1]] = json.loads(capsys.readouterr().out)
    assert not (tmp_path / "runs").exists()
    assert names["tickets.toml"]["title"] == "Which method for our tickets?"
    assert len(names["tickets.toml"]["runs"]) == 2 * 3 * (1 + 2)
    assert len(names["quick"]["runs"]) == 2 * (1 + 2)
    assert len(names["tickets.toml"]["tuning"]) == 3 * (1 + 2)
    assert "fl-lora-alpha0.1-seed0-r2" in names["tickets.toml"]["runs"]


def test_the_example_means_what_its_comments_say(text: str) -> None:
    whole = parse_experiment(text, "published")
    assert whole.tuning is not None and whole.tuning.multiples == (0.2, 0.5, 1.0)
    assert whole.tuning.values["validation-fraction"] == 0.2
    assert (whole.rows, whole.columns) == (("arm", "r"), ("alpha",))
    quick = points(parse_experiment(text, "quick"), {})
    assert {point.config({}).num_server_rounds for point in quick} == {2}
    assert {point.config({}).method for point in quick} == {"lora-a2", "fl-lora"}


def test_the_page_describes_every_section() -> None:
    table = PAGE[PAGE.index("| section |") : PAGE.index("Without `--profile`")]
    for name in experiment._SECTIONS:
        assert f"`[{name}]`" in table or f"`{name}`" in table or f"`[{name}." in table, name
    for name in (*experiment._TUNE - {"run", "arms"}, *experiment._TABLE):
        assert f"`{name}`" in table, name


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ('[table]\nrow = ["arm"]', r"there is no option of \[table\] 'row'"),
        ('[table]\nrows = ["arms"]', r"there is no option in \[table\] rows 'arms'"),
        ('[tune]\nlearning-rates = [1e-3]\nper = ["dat"]', r"there is no option in \[tune\] per 'dat'"),
    ],
)
def test_what_would_be_passed_over_is_refused(wrong: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_experiment(f"[arms.a]\n{wrong}", "published")
