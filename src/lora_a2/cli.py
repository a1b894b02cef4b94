"""The command line: `lora-a2`.

Only click is imported here; a command's module, and with it torch and the rest, is imported when the command runs.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import io
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

import click

from lora_a2.errors import LoraA2Error
from lora_a2.system.machine import require_unix
from lora_a2.system.signals import interruptible, status
from lora_a2.system.text import visible

COMMANDS: dict[str, str] = {
    "run": "Fine-tune a model on federated data.",
    "resume": "Continue a run that was interrupted.",
    "status": "Tell how far a run is, while it runs or afterwards.",
    "compare": "Run several methods on the same data and print one table.",
    "sweep": "Run an experiment: a grid over any options, in one table.",
    "rounds": "List a run's rounds with their metrics.",
    "report": "Write one HTML page with pictures of runs.",
    "evaluate": "Measure a run on test data, by client and by class.",
    "predict": "Label texts, or a table of them, with a run.",
    "generate": "Let a run's language model write.",
    "export": "Write a finished run's model for PEFT or Transformers.",
    "analyze": "Statistics of a finished run, a sweep or a comparison.",
    "partition": "Show who would hold which examples, without running anything.",
    "cost": "Tell what a run will send, without running it.",
    "methods": "List the algorithms.",
    "node": "Train for a federation with this machine's own data.",
    "flower": "Federations across machines, with Flower.",
}
"""Name → one line of help. The command is `command` in `lora_a2.commands.<name>`."""

USER_ERROR = 2
_UNNAMED = "standard output, or the folder of temporary files"
"""What may be full where an error names no file: all files of our own are named."""
_SHOW_CURSOR = "\x1b[?25h"


class LazyGroup(click.Group):
    """A group that knows its commands' names and help, and imports a command when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports the command's module."""
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"lora_a2.commands.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, but an unknown command's error names the nearest."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]!r}?" if near else f"Commands: {', '.join(COMMANDS)}."
            ctx.fail(f"No such command {name!r}. {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands' help, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="\b\nExamples:\n  lora-a2 run\n  lora-a2 run --data reviews.csv --model roberta-base\n  lora-a2 run --help",
)
@click.version_option(None, "--version", package_name="lora-a2", prog_name="lora-a2")
def cli() -> None:
    """Federated fine-tuning of Transformers models with LoRA.

    "lora-a2 run" without options trains a small model on a data set that comes along, in a few minutes.
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status; a user's mistake is one line on stderr and status 2.

    Ctrl-C, SIGTERM and SIGHUP end it with one line that says how to go on, and 128 and the signal's number.
    """
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    _print_anything()
    # PEFT imports it wherever it is installed, and it then tells of kernels that are not used here.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        with interruptible(last=argv is None):
            return _run(arguments)
    except KeyboardInterrupt:  # in the last moment
        return status()


def _print_anything() -> None:
    """Characters that a terminal's encoding lacks are printed as escapes instead of ending the program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _run(arguments: list[str]) -> int:
    try:
        require_unix()
        returned = cli.main(arguments, prog_name="lora-a2", standalone_mode=False)
        sys.stdout.flush()
        return returned if isinstance(returned, int) else 0
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "lora-a2"
        return _fail(f"{error.format_message()} (try '{path} --help')")
    except click.ClickException as error:
        return _fail(error.format_message())
    except (click.Abort, KeyboardInterrupt) as error:
        _say(str(error) or "Interrupted.")
        if sys.stderr.isatty():
            _say(_SHOW_CURSOR, end="")  # whatever hid it may not have come to show it again
        return status()
    except LoraA2Error as error:
        return _fail(str(error))
    except BrokenPipeError:
        # Whoever read our output has left. What is still buffered must not fail when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = error.filename or (_UNNAMED if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else None)
        return _fail(f"{error.strerror or error}" + (f": {where}" if where else ""))


def _fail(message: str) -> int:
    _say(f"lora-a2: error: {visible(' '.join(message.split()))}")
    return USER_ERROR


def _say(text: str, end: str = "\n") -> None:
    with suppress(OSError):  # a terminal that was closed
        print(text, file=sys.stderr, end=end, flush=True)
