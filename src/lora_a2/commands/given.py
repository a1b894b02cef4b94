"""What a command works on: arguments, or lines of standard input."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import click


def given_or_lines(given: Sequence[str], what: str) -> Iterator[str]:
    """The arguments of the command line, else the lines of standard input, blanks at both ends and empty ones left out.

    `what` they are, such as "text", is what messages call them. That there are none is found out at once if it can be.

    Raises:
        click.UsageError: there are none, one is empty, or not UTF-8.
    """
    if any(not text.strip() for text in given):
        raise click.UsageError(f"A {what} is empty.", click.get_current_context())
    if given:
        for text in given:
            check_encoding(text, f"A {what}")
        return iter(given)
    if sys.stdin.isatty():
        raise click.UsageError(f"No {what} given: name one, or pipe lines in.", click.get_current_context())
    return _some(what)


def lines() -> Iterator[str]:
    """The lines of standard input that are not empty, blanks at both ends left out.

    Raises:
        click.UsageError: they are not UTF-8.
    """
    try:
        for line in sys.stdin:
            if line.strip():
                check_encoding(line, "Standard input")
                yield line.strip()
    except UnicodeDecodeError as error:
        raise click.UsageError(f"Standard input is not {error.encoding} text.") from None


def check_encoding(text: str, what: str) -> None:
    """Refuses bytes that Python could not decode and handed on as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise click.UsageError(f"{what} is not UTF-8 text.", click.get_current_context()) from None


def _some(what: str) -> Iterator[str]:
    some = False
    for line in lines():
        some = True
        yield line
    if not some:
        raise click.UsageError(f"No {what} given: standard input has none.", click.get_current_context())
