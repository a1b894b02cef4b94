"""`lora-a2 generate`"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lora_a2.commands.common import examples, print_json, run_dir_argument, say_standing, trust_option
from lora_a2.commands.given import check_encoding, given_or_lines, lines
from lora_a2.system.text import visible, visible_lines

if TYPE_CHECKING:
    from lora_a2.data.written import Turn
    from lora_a2.runs.writer import Writer
    from lora_a2.tasks.causal_lm.sampling_options import SamplingOptions

_MOST_AT_ONCE = 32
"""Prompts that are read before the first of them is answered."""

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
_SAMPLING: tuple[tuple[str, type, Any, str], ...] = (
    ("--max-new-tokens", int, 128, "Most tokens of an answer."),
    ("--temperature", float, 1.0, "With --do-sample: below 1 likely tokens get likelier."),
    ("--top-k", int, 50, "With --do-sample: draw from this many of the likeliest tokens; 0: all."),
    ("--top-p", float, 1.0, "With --do-sample: draw from the likeliest tokens that have this probability together."),
    ("--repetition-penalty", float, 1.0, "Above 1 tokens that were there already get less likely."),
    ("--num-beams", int, 1, "Continuations to follow side by side; without --do-sample."),
    ("--seed", int, 0, "With --do-sample: of the draws; a prompt gets the same answer again."),
)


def _sampling_options(function: Decorated) -> Decorated:
    """The fields of `SamplingOptions`, which checks them."""
    for name, kind, default, text in reversed(_SAMPLING):
        function = click.option(name, type=kind, default=default, show_default=True, help=text)(function)
    return click.option("--do-sample", is_flag=True, help="Draw tokens instead of taking the likeliest.")(function)


@click.command(
    "generate",
    epilog=examples(
        'lora-a2 generate runs/assistant "Write a reply to: where is my parcel?"',
        "lora-a2 generate runs/assistant --chat --do-sample --temperature 0.7",
        "lora-a2 generate runs/assistant --json < prompts.txt > answers.jsonl",
    ),
)
@run_dir_argument
@click.argument("prompts", metavar="[PROMPT]...", nargs=-1)
@click.option(
    "--chat", is_flag=True, help="Talk with the model, line by line, until Ctrl-D; it is shown all that was said."
)
@click.option("--system-prompt", metavar="TEXT", help="What the model is told first; instead of the run's own.")
@_sampling_options
@trust_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a prompt, one a line.")
def command(
    run_dir: Path,
    prompts: tuple[str, ...],
    chat: bool,
    system_prompt: str | None,
    trust_remote_code: bool,
    as_json: bool,
    **sampling: Any,
) -> None:
    """Let a run's language model write: an answer to each prompt.

    A run that is not finished writes with the model of its last finished round.

    Without PROMPT, every line of standard input is a prompt; empty lines are skipped. The likeliest token is taken each time
    unless --do-sample or --num-beams is given; the settings that came with the base model are not used.
    """
    _check(prompts, chat, system_prompt, as_json)
    given = lines() if chat else given_or_lines(prompts, "prompt")

    from lora_a2.data.written import Turn
    from lora_a2.runs.directory import require_some
    from lora_a2.tasks.causal_lm.sampling_options import SamplingOptions

    options = SamplingOptions(**sampling)
    require_some(run_dir)
    start = [] if system_prompt is None else [Turn("system", system_prompt)]

    from lora_a2.runs.writer import load_writer

    say_standing(run_dir)
    writer = load_writer(run_dir, trust_remote_code=trust_remote_code)
    if chat:
        _converse(writer, _typed() if sys.stdin.isatty() else given, start, options)
    elif sys.stdout.isatty() and not as_json:
        _answer_live(writer, given, len(prompts) == 1, start, options)
    else:
        _answer(writer, given, len(prompts) == 1, start, options, as_json)


def _check(prompts: Sequence[str], chat: bool, system_prompt: str | None, as_json: bool) -> None:
    if chat and (prompts or as_json):
        named = "PROMPT" if prompts else "--json"
        raise click.UsageError(f"--chat takes what you type and shows the answers: leave {named} out.")
    if system_prompt is not None:
        if not system_prompt.strip():
            raise click.UsageError("--system-prompt: the text is empty.", click.get_current_context())
        check_encoding(system_prompt, "--system-prompt")


def _answer(
    writer: Writer, given: Iterator[str], single: bool, start: Sequence[Turn], options: SamplingOptions, as_json: bool
) -> None:
    """Prints answers, several prompts at once."""
    from lora_a2.data.written import Turn
    from lora_a2.tasks.causal_lm.generation import generate_texts

    first = 1
    while batch := list(islice(given, _MOST_AT_ONCE)):
        encoded = [writer.encode_prompt([*start, Turn("user", prompt)]) for prompt in batch]
        for prompt, text in zip(
            batch, generate_texts(writer.model, writer.tokenizer, encoded, options, first=first), strict=True
        ):
            if as_json:
                print_json({"prompt": prompt, "completion": text})
            else:
                _show_prompt(prompt, single)
                click.echo(visible_lines(text) + ("" if single else "\n"))
        first += len(batch)


def _answer_live(
    writer: Writer, given: Iterator[str], single: bool, start: Sequence[Turn], options: SamplingOptions
) -> None:
    """Prints answers to a terminal as they are written."""
    from lora_a2.data.written import Turn

    for prompt in given:
        _show_prompt(prompt, single)
        _write(writer, [*start, Turn("user", prompt)], options)
        if not single:
            click.echo()


def _show_prompt(prompt: str, single: bool) -> None:
    if not single:
        click.echo(f"> {visible(prompt)}")


def _converse(writer: Writer, messages: Iterator[str], start: Sequence[Turn], options: SamplingOptions) -> None:
    from lora_a2.data.written import Turn

    turns = list(start)
    for message in messages:
        turns.append(Turn("user", message))
        turns.append(Turn("assistant", _write(writer, turns, options)))


def _typed() -> Iterator[str]:
    """What is typed at a terminal, line by line, until Ctrl-D."""
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            click.echo()
            return
        if line:
            check_encoding(line, "What was typed")
            yield line


def _write(writer: Writer, turns: Sequence[Turn], options: SamplingOptions) -> str:
    """Prints an answer as it is written, and returns it."""
    from lora_a2.tasks.causal_lm.generation import stream_text

    pieces = []
    stream = stream_text(writer.model, writer.tokenizer, writer.encode_prompt(turns), options)
    with closing(stream):
        for piece in stream:
            pieces.append(piece)
            click.echo(visible_lines(piece), nl=False)
            sys.stdout.flush()
    click.echo()
    return "".join(pieces)
