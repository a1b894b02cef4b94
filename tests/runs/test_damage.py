"""Any byte of a run directory may change: what is read back is the same, or one error names the file; never another result."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cli_helpers import one_error
from federation import study_options, texts
from lora_a2.analysis.record import load_run
from lora_a2.cli import main
from lora_a2.config.run import RunConfig
from lora_a2.errors import RunError
from lora_a2.federation.observer import Observer
from lora_a2.runs.history import history
from lora_a2.runs.jobs import launch, resume
from lora_a2.runs.measuring import evaluate_run
from lora_a2.runs.predict import load_predictor
from lora_a2.system.files import SUMS
from run_files import contents
from tiny import Stopping

Command = Callable[[Path], Any]


def result(run: Path) -> Any:
    """What a run came to: its record, its last state, its models."""
    parts = (
        "rounds.jsonl",
        "analysis.jsonl",
        "checkpoint/state.json",
        "checkpoint/round-00002",
        "adapter/",
        "personal/",
    )
    return {name: data for name, data in contents(run).items() if name.startswith(parts)}


def resumed(run: Path) -> Any:
    """What the run comes to."""
    resume(run, Observer())
    return result(run)


def went_back(run: Path) -> Any:
    """What it comes to if its last checkpoint is given up."""
    resume(run, Observer(), from_round=1)
    return result(run)


def predicted(run: Path) -> Any:
    return load_predictor(run).predict(texts(3)).tobytes()


def predicted_by_a_client(run: Path) -> Any:
    return predicted(run / "personal" / "0")


def tabulated(run: Path) -> Any:
    return history(run).filter(regex="^(?!seconds)").to_csv()


def evaluated(run: Path) -> Any:
    return evaluate_run(run).to_json()


COMMANDS: dict[str, tuple[Command, ...]] = {
    "finished": (tabulated, evaluated, predicted, predicted_by_a_client, resumed, went_back),
    "begun": (tabulated, resumed),
}


class Case:
    """A run directory, and what each command makes of it as long as it is whole."""

    def __init__(self, path: Path) -> None:
        self.path, self.expected = path, dict[Command, Any]()
        for command in COMMANDS[path.name]:
            with tempfile.TemporaryDirectory() as folder:
                self.expected[command] = command(Path(shutil.copytree(path, Path(folder) / "run")))

    def files(self) -> list[str]:
        """All files but the one that is locked, which holds nothing."""
        return sorted(
            p.relative_to(self.path).as_posix() for p in self.path.rglob("*") if p.is_file() and p.name != ".lock"
        )

    def check(self, name: str, damage: Callable[[bytes], bytes]) -> int:
        """Damages a copy for each command; returns how many refused."""
        refused = 0
        for command, expected in self.expected.items():
            with tempfile.TemporaryDirectory() as folder:
                run = Path(shutil.copytree(self.path, Path(folder) / "run"))
                (run / name).write_bytes(damage((run / name).read_bytes()))
                try:
                    found, said = command(run), None
                except RunError as error:
                    found, said = None, str(error)
                if said is None:
                    assert found == expected, f"{name}: another result of {command.__name__}"
                else:
                    assert name in said, f"{said} does not name {name}"
                    assert "\n" not in said
                    refused += 1
        return refused


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """Two rounds of a method whose clients keep something, complete and interrupted in the second."""
    folder = tmp_path_factory.mktemp("damage")
    options = study_options(folder) | {"method": "fedsa-lora"}
    launch(RunConfig(**options, output_dir=str(folder / "finished")), Observer())
    with pytest.raises(KeyboardInterrupt):
        launch(RunConfig(**options, output_dir=str(folder / "begun")), Stopping(after=2))
    return {name: Case(folder / name) for name in COMMANDS}


def flip(position: float, bit: int) -> Callable[[bytes], bytes]:
    def damage(data: bytes) -> bytes:
        place = int(position * len(data))
        return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]

    return damage


READ_BY_ALL = {"config.toml", "environment.json", "clients.json", SUMS}
STATE = {"checkpoint/state.json", "checkpoint/round-00002.safetensors"}
RECORD = {f"{name}.{ending}" for name in ("rounds", "analysis") for ending in ("jsonl", "sha256")}
EARLIER = {"checkpoint/previous.json", "checkpoint/round-00001.safetensors"}
MODEL = ("adapter_config.json", "adapter_model.safetensors", "classifier.json", "head.safetensors", SUMS)


def test_a_bit_in_every_file_of_a_begun_run(cases: dict[str, Case]) -> None:
    case = cases["begun"]
    last = {"checkpoint/state.json", "checkpoint/round-00001.safetensors"}
    assert set(case.files()) == READ_BY_ALL | RECORD | last
    assert {name for name in case.files() if case.check(name, flip(0.5, 0))} == set(case.files())


@pytest.mark.slow
def test_a_bit_in_every_file_of_a_finished_run(cases: dict[str, Case]) -> None:
    case = cases["finished"]
    folders = {name: {f"{name}/{file}" for file in MODEL} for name in ("adapter", "personal/0", "personal/1")}
    found = {name: case.check(name, flip(0.9, 0)) for name in case.files()}
    expected = {
        **dict.fromkeys(READ_BY_ALL, 4),  # all but `predicted_by_a_client`, for whom the folder is enough
        **dict.fromkeys(STATE, 2),  # `evaluated` and `resumed`
        **dict.fromkeys(RECORD, 1),  # `resumed`; the last line is written anew by who went back
        **dict.fromkeys(EARLIER, 1),  # `went_back`
        **dict.fromkeys(folders["adapter"] | folders["personal/0"], 1),  # whoever predicts; resuming writes them again
        **dict.fromkeys(folders["personal/1"], 0),
    }
    assert found == expected


@pytest.mark.parametrize("name", ["checkpoint/state.json", "checkpoint/round-00002.safetensors", "rounds.jsonl"])
def test_a_damaged_checkpoint_is_not_the_end(
    name: str, cases: dict[str, Case], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error tells the command that goes on from the checkpoint before; what comes of it is what there was."""
    run = Path(shutil.copytree(cases["finished"].path, tmp_path / "run"))
    (run / name).write_bytes(flip(0.9, 0)((run / name).read_bytes()))
    assert main(["resume", str(run), "--quiet"]) == 2
    said = one_error(capsys)
    assert name in said
    offered = f"resume {run} --from-round 1"
    assert said.rstrip().endswith(f"lora-a2 {offered}")
    assert main([*offered.split(), "--quiet"]) == 0
    assert result(run) == cases["finished"].expected[resumed]


@pytest.mark.parametrize(("last", "number"), [("state.json", 2), ("state.json", 7), ("previous.json", 1)])
def test_there_is_no_way_back_to_what_is_not_whole(
    last: str, number: int, cases: dict[str, Case], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(cases["finished"].path, tmp_path / "run"))
    path = run / "checkpoint" / last
    path.write_bytes(flip(0.5, 0)(path.read_bytes()))
    before = contents(run)
    there = r"Rounds with one: 1\." if last == "state.json" else r"previous\.json is damaged"
    with pytest.raises(RunError, match=there):
        resume(run, Observer(), from_round=number)
    assert contents(run) == before


def test_a_change_that_is_meant_is_accepted_by_the_command_that_the_error_tells(
    cases: dict[str, Case], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(cases["begun"].path, tmp_path / "a run"))
    config = run / "config.toml"
    config.write_text(config.read_text().replace("eval-every = 1", "eval-every = 2"))
    with pytest.raises(RunError, match=r"config\.toml is damaged or was changed") as refused:
        resume(run, Observer())
    command = str(refused.value).partition("accept it: ")[2]
    subprocess.run(command, shell=True, check=True)
    resume(run, Observer())
    assert load_run(run).config["eval-every"] == 2


DAMAGES = st.one_of(
    st.builds(flip, st.floats(0, 1, exclude_max=True), st.integers(0, 7)),
    st.builds(lambda share: lambda data: data[: int(share * len(data))], st.floats(0, 1, exclude_max=True)),
    st.builds(lambda more: lambda data: data + more, st.binary(min_size=1, max_size=9)),
)


@pytest.mark.parametrize("kind", COMMANDS)
@settings(max_examples=6, deadline=None, database=None, derandomize=True)
@given(data=st.data())
def test_any_damage(kind: str, data: st.DataObject, cases: dict[str, Case]) -> None:
    cases[kind].check(data.draw(st.sampled_from(cases[kind].files())), data.draw(DAMAGES))


@pytest.mark.slow
@pytest.mark.parametrize("kind", COMMANDS)
@settings(max_examples=200, deadline=None, database=None)
@given(data=st.data())
def test_any_damage_often(kind: str, data: st.DataObject, cases: dict[str, Case]) -> None:
    cases[kind].check(data.draw(st.sampled_from(cases[kind].files())), data.draw(DAMAGES))
