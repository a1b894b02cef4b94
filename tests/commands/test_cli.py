"""The command line: help, options, errors in one line, and what each command prints. No run is trained here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from cli_helpers import fake, one_error
from lora_a2.cli import COMMANDS, main
from lora_a2.config.run import RunConfig
from lora_a2.errors import DataError
from lora_a2.federation.observer import RunStart

HEAVY = ("torch", "transformers", "datasets", "pydantic", "rich", "numpy", "peft", "pandas")


class Summary:
    """A finished run, as `RunSummary` shows itself."""

    task, personal = "classification", None
    metrics: ClassVar[dict[str, float]] = {"accuracy": 0.8125, "client_worst_tenth": 0.5}
    uploaded_parameters, uploaded_bytes, downloaded_bytes = 1_234_567, 4_938_268, 9_900_000
    full_finetuning_parameters, reduction_percent = 2_240_000_000, 99.94
    server_rounds, seconds, output_dir = 10, 75.2, "runs/my run"
    peak_memory_bytes, evaluation_bytes, exact_aggregation = 900_000_000, 0, True
    ended_early, kept_round, baselines = False, 10, None

    def to_json(self) -> dict[str, Any]:
        return {"accuracy": self.metrics["accuracy"], "output_dir": self.output_dir}


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What launch and resume were called with."""
    calls: list[Any] = []

    def launch(config: Any, observer: Any, **options: Any) -> Summary:
        calls.append(config)
        return Summary()

    fake(monkeypatch, "lora_a2.runs.jobs", launch=launch, resume=launch)
    return calls


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_help_lists_every_command(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 0
    printed = capsys.readouterr().out
    assert "Examples:\n    lora-a2 run\n" in printed
    for name, text in COMMANDS.items():
        assert f"{name} " in printed
        assert text in printed


def test_top_level_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from lora_a2.cli import main; main(['--help']); main(['--version']); "
        f"print('loaded:', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.rstrip().endswith("loaded: []")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_has_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    printed = capsys.readouterr().out
    assert printed.split("Examples:\n")[1].count(f"    lora-a2 {name}") in (2, 3, 4)


def test_help_of_run_has_every_field_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--help"]) == 0
    printed = capsys.readouterr().out
    for info in RunConfig.model_fields.values():
        assert f"--{info.alias} " in printed
    for part in (
        "[default: 128;",
        "--strip-newsgroups / --no-strip-newsgroups",
        "[default: on]",
        "fp32|fp16",
    ):
        assert part in printed


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["rum"], "No such command 'rum'. Did you mean 'run'? (try 'lora-a2 --help')"),
        (["run", "--num-client", "3"], "--num-clients"),
        (["run", "--no-such"], "(try 'lora-a2 run --help')"),
        (["run", "extra"], "extra"),
        (["run", "--alpha", "0"], "alpha: 0 should be greater than 0."),
        (["run", "--alpha"], "requires an argument"),
        (["run", "--rank-budget", "32"], "rank-budget: 32 is above r = 16"),
        (["run", "--method", "fedavg"], "Unknown method 'fedavg'"),
        (["run", "--config", "missing.toml"], "missing.toml"),
        (["resume", "no/such/run"], "no/such/run"),
        (["resume"], "RUN_DIR"),
        (["evaluate", "no/such/run"], "no/such/run"),
        (["predict", "no/such/run", "text"], "no/such/run"),
        (["predict", ".", " "], "A text is empty."),
        (["generate", "no/such/run", "text"], "no/such/run"),
        (["generate", ".", "text", "--top-k", "many"], "--top-k"),
        (["predict", ".", "text", "--top", "0"], "--top"),
        (["cost", "--client-column", "user"], "--client-column"),
        (["cost", "--model", "roberta-bse"], "roberta-base"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    argv: list[str], expected: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(argv) == 2
    assert expected in one_error(capsys)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("num-clints = 3", "Unknown key 'num-clints'; did you mean 'num-clients'?"),
        ("seed 3", "(at line 1, column 6)"),
        ("r = 'many'", "r: 'many' should be a valid integer"),
    ],
)
def test_a_wrong_file_is_one_line(
    content: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "study.toml"
    path.write_text(content)
    assert main(["run", "--config", str(path)]) == 2
    assert expected in one_error(capsys)


def test_run_merges_file_and_flags(tmp_path: Path, launched: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "study.toml"
    path.write_text("num-clients = 3\nseed = 1\nstrip-newsgroups = false\n")
    argv = ["run", "--config", str(path), "--seed", "2", "--rank-budget", "1,2,4", "--quiet", "--json"]
    assert main(argv) == 0
    expected = RunConfig(num_clients=3, seed=2, rank_budget=(1, 2, 4), strip_newsgroups=False)
    assert launched == [expected]
    assert main([*argv, "--strip-newsgroups"]) == 0
    assert launched[1] == expected.model_copy(update={"strip_newsgroups": True})


def test_run_prints_a_summary_or_one_json_object(launched: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run"]) == 0
    printed = capsys.readouterr().out
    for part in ("81.2 %", "4.9 MB (1,234,567 parameters)", "99.94 %", "1:15", "lora-a2 predict 'runs/my run' \"your"):
        assert part in printed
    assert main(["run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == Summary().to_json()


def test_resume_continues_the_directory(
    tmp_path: Path, launched: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.toml").touch()
    assert main(["resume", str(tmp_path), "--json"]) == 0
    assert launched == [tmp_path]
    assert json.loads(capsys.readouterr().out)["accuracy"] == 0.8125


def interrupting(started: bool) -> Callable[..., None]:
    """A launch that Ctrl-C ends, before or after it has a run directory."""

    def launch(config: RunConfig, observer: Any, **options: Any) -> None:
        if started:
            observer.started(
                RunStart(
                    output_dir="runs/a b",
                    num_clients=2,
                    clients_per_round=2,
                    first_round=1,
                    num_server_rounds=2,
                    full_finetuning_bytes_per_round=8,
                    method="m",
                    model="n",
                    data="d",
                )
            )
        raise KeyboardInterrupt

    return launch


@pytest.mark.parametrize(
    ("started", "expected"),
    [(True, "Interrupted; continue with: lora-a2 resume 'runs/a b'"), (False, "Interrupted before the first round")],
)
def test_an_interrupted_run_tells_how_to_continue(
    started: bool, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(monkeypatch, "lora_a2.runs.jobs", launch=interrupting(started))
    assert main(["run", "--quiet"]) == 130
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(expected)
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (DataError("line one\n  line two"), "lora-a2: error: line one line two\n"),
        (PermissionError(13, "Permission denied", "/locked/x"), "lora-a2: error: Permission denied: /locked/x\n"),
    ],
)
def test_an_error_below_is_one_line(
    error: Exception, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def launch(config: RunConfig, observer: Any, **options: Any) -> None:
        raise error

    fake(monkeypatch, "lora_a2.runs.jobs", launch=launch)
    assert main(["run", "--quiet"]) == 2
    assert one_error(capsys) == expected


def test_a_reader_that_leaves_is_no_error() -> None:
    code = "import sys; from lora_a2.cli import main; sys.exit(main(['run', '--help']))"
    reading, writing = os.pipe()
    os.close(reading)
    result = subprocess.run([sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (result.returncode, result.stderr) == (1, "")
