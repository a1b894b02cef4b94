"""What every command prints with: a console on which texts are what they say, and tables."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.text import Text

from lora_a2.system.text import visible

_WIDE = 200


class PlainConsole(Console):
    """A console on which texts are what they say: a user's brackets are no markup, and control characters are shown."""

    def render_str(self, text: str, **options: Any) -> Text:
        """As the original, for text that is nobody's markup, in one line."""
        return super().render_str(visible(text), **{**options, "markup": False, "emoji": False, "highlight": False})


def stdout_console() -> Console:
    """A console for results; in a file or a pipe tables are as wide as they need, so that no figure is cut."""
    return PlainConsole() if sys.stdout.isatty() else PlainConsole(width=_WIDE)


def print_table(rows: Iterable[tuple[str, str]], console: Console | None = None) -> None:
    """Names and values in two columns, to standard output where no console is given; values are never cut or wrapped."""
    rows, console = list(rows), console or stdout_console()
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        print_line(console, f"{name:<{width}}  {value}")


def print_line(console: Console, text: str) -> None:
    """A text as it is, however wide."""
    console.print(visible(text), soft_wrap=True, markup=False, highlight=False, emoji=False)
