"""`lora-a2 generate`: what it prints, to whom, and what it refuses. The model is tiny and random."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from cli_helpers import fake, one_error
from lora_a2.cli import main
from lora_a2.commands import generate
from lora_a2.data.written import Turn
from lora_a2.tasks.causal_lm.generation import generate_texts
from lora_a2.tasks.causal_lm.sampling_options import SamplingOptions
from plain_writers import tokenizer, writer
from terminal import Terminal


@dataclass
class Told:
    """A writer that remembers what it was asked."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    chats: list[list[Turn]]

    def encode_prompt(self, turns: Sequence[Turn]) -> np.ndarray:
        self.chats.append(list(turns))
        chat = [{"role": turn.role, "content": turn.content} for turn in turns]
        text = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        return np.array(self.tokenizer(text, add_special_tokens=False).input_ids)

    def says(self, *turns: Turn, **options: Any) -> str:
        (text,) = generate_texts(self.model, self.tokenizer, [self.encode_prompt(turns)], SamplingOptions(**options))
        self.chats.pop()
        return text


@pytest.fixture(autouse=True)
def _run_directory(tmp_path: Path) -> None:
    """What stand-ins are given looks like a run."""
    (tmp_path / "adapter_config.json").touch()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    made = Told(writer("llama", seed=4), tokenizer(), [])
    made.model.config.max_position_embeddings = 200
    fake(monkeypatch, "lora_a2.runs.writer", load_writer=lambda run_dir, trust_remote_code: made)
    return made


class Screen(io.StringIO):
    """A standard stream that a person sits at."""

    def isatty(self) -> bool:
        return True


def user(text: str) -> Turn:
    return Turn("user", text)


def test_one_prompt_is_answered_by_its_answer_alone(
    told: Told, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", str(tmp_path), "abc", "--max-new-tokens", "8"]) == 0
    assert capsys.readouterr().out == told.says(user("abc"), max_new_tokens=8) + "\n"


def test_options_reach_the_model(told: Told, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--do-sample", "--temperature", "2", "--top-k", "0", "--top-p", "0.9", "--seed", "7"]
    options: dict[str, Any] = {"do_sample": True, "temperature": 2.0, "top_k": 0, "top_p": 0.9, "seed": 7}
    more = ["--repetition-penalty", "1.5", "--max-new-tokens", "8", "--system-prompt", "be brief", "--json"]
    assert main(["generate", str(tmp_path), *flags, *more, "abc"]) == 0
    assert told.chats == [[Turn("system", "be brief"), user("abc")]]
    expected = told.says(*told.chats[0], **options, repetition_penalty=1.5, max_new_tokens=8)
    assert json.loads(capsys.readouterr().out) == {"prompt": "abc", "completion": expected}


def test_the_flags_are_the_options() -> None:
    declared = {f.name: f.default for f in fields(SamplingOptions) if f.name != "do_sample"}
    assert {name[2:].replace("-", "_"): default for name, _, default, _ in generate._SAMPLING} == declared


def test_lines_of_standard_input_are_prompts(
    told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"{'abcdefg'[i % 7]} {'the ' * (i % 3)}".strip() for i in range(generate._MOST_AT_ONCE + 3)]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n\n".join(lines)))
    assert main(["generate", str(tmp_path), "--json", "--max-new-tokens", "5"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["prompt"] for row in rows] == lines
    assert [row["completion"] for row in rows] == [told.says(user(line), max_new_tokens=5) for line in lines]


def test_several_prompts_are_shown_with_their_answers(
    told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a pipe and, as they are written, on a terminal."""
    answers = [told.says(user(text), max_new_tokens=6) for text in ("abc", "x")]
    assert main(["generate", str(tmp_path), "abc", "x", "--max-new-tokens", "6"]) == 0
    expected = f"> abc\n{answers[0]}\n\n> x\n{answers[1]}\n\n"
    assert capsys.readouterr().out == expected
    monkeypatch.setattr(sys, "stdout", screen := Screen())
    assert main(["generate", str(tmp_path), "abc", "x", "--max-new-tokens", "6"]) == 0
    assert screen.getvalue() == expected


def test_what_a_model_writes_moves_no_cursor(
    told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nasty = "a\x1b[2Jb\r\tc\nd"
    monkeypatch.setattr("lora_a2.tasks.causal_lm.generation.generate_texts", lambda *args, **options: [nasty])
    assert main(["generate", str(tmp_path), "abc"]) == 0
    assert capsys.readouterr().out == "a\\x1b[2Jb\\r\tc\nd\n"
    assert main(["generate", str(tmp_path), "abc", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["completion"] == nasty


def test_a_chat_keeps_what_was_said(
    told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("abc\n\nand then\n"))
    assert main(["generate", str(tmp_path), "--chat", "--system-prompt", "s", "--max-new-tokens", "6"]) == 0
    start = [Turn("system", "s"), user("abc")]
    assert told.chats[0] == start
    first = told.says(*start, max_new_tokens=6)
    assert told.chats[1] == [*start, Turn("assistant", first), user("and then")]
    second = told.says(*told.chats[1], max_new_tokens=6)
    assert capsys.readouterr().out == f"{first}\n{second}\n"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["x", "--chat"], "leave PROMPT out"),
        (["--chat", "--json"], "leave --json out"),
        (["x", "--system-prompt", " "], "--system-prompt: the text is empty."),
        (["x", "--system-prompt", "caf\udce9"], "--system-prompt is not UTF-8 text."),
        (["x", " "], "A prompt is empty."),
        (["caf\udce9"], "A prompt is not UTF-8 text."),
        (["x", "--temperature", "0.5"], "temperature: it has no effect here; it needs do-sample."),
        (["x", "--max-new-tokens", "0"], "max-new-tokens: 0 should be a whole number from 1 on."),
        (["x", "a" * 300], "Prompt 2 has 3"),
    ],
)
def test_a_mistake_is_one_line(
    argv: list[str], expected: str, told: Told, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", str(tmp_path), *argv]) == 2
    assert expected in one_error(capsys)


def test_prompts_of_later_batches_are_named_by_their_number(
    told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    count = generate._MOST_AT_ONCE + 4
    monkeypatch.setattr(sys, "stdin", io.StringIO("x\n" * (count - 1) + "a" * 300 + "\n"))
    assert main(["generate", str(tmp_path), "--json", "--max-new-tokens", "1"]) == 2
    printed = capsys.readouterr()
    assert printed.out.count("\n") == generate._MOST_AT_ONCE
    assert f"Prompt {count} has 3" in printed.err


def test_no_prompt_at_a_terminal(
    told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", Screen())
    assert main(["generate", str(tmp_path)]) == 2
    assert "No prompt given: name one, or pipe lines in." in one_error(capsys)
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    assert main(["generate", str(tmp_path)]) == 2
    assert "No prompt given: standard input has none." in one_error(capsys)


TALK = """
import sys, types
from test_generate import Told, tokenizer, writer
from lora_a2.cli import main
made = Told(writer("llama", seed=4), tokenizer(None), [])
made.tokenizer.eos_token = None
made.model.generation_config.eos_token_id = made.model.config.eos_token_id = None
made.model.config.max_position_embeddings = 10**6
made.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
stand_in = types.ModuleType("lora_a2.runs.writer")
stand_in.load_writer = lambda run_dir, trust_remote_code: made
sys.modules["lora_a2.runs.writer"] = stand_in
sys.exit(main(["generate", sys.argv[1], "--chat", *sys.argv[2:]]))
"""


@pytest.mark.parametrize("interrupted", [True, False])
def test_a_chat_at_a_terminal_ends_by_ctrl_d_and_by_ctrl_c_in_an_answer(interrupted: bool, tmp_path: Path) -> None:
    tests = Path(__file__).parents[1]
    environment = {"PYTHONPATH": os.pathsep.join([str(tests), str(tests / "commands"), *sys.path])}
    most = "100000" if interrupted else "5"
    with Terminal(["-c", TALK, str(tmp_path), "--max-new-tokens", most], environment) as terminal:
        terminal.wait_for(b"> ")
        terminal.type(b"the\n")
        if interrupted:
            size = len(terminal.printed)
            terminal.wait(lambda: len(terminal.printed) > size + 20)
            terminal.send(signal.SIGINT)
            assert terminal.end() == 130
            assert terminal.printed.count(b"Interrupted.") == 1
        else:
            terminal.wait(lambda: terminal.printed.count(b"> ") == 2)
            terminal.type(b"\x04")
            assert terminal.end() == 0
        assert b"Traceback" not in terminal.printed
