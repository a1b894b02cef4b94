"""How a model that writes is given its examples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator

from lora_a2.settings.options import Options, option
from lora_a2.settings.task import WRITING

LARGEST_TEMPLATE = 1 << 20
"""Characters of a chat template."""


def _template(given: str) -> str:
    """The text of a template, of the file that is named if it is none itself."""
    if "{{" in given or "{%" in given:
        return given
    path = Path(given).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(
            f"{given[:80]!r} is neither a template nor a file that can be read ({error.strerror})."
        ) from None
    except UnicodeDecodeError:
        raise ValueError(f"{given[:80]!r} is not UTF-8 text.") from None
    if not ("{{" in text or "{%" in text) or len(text) > LARGEST_TEMPLATE:
        raise ValueError(f"{given[:80]!r} holds no Jinja template.")
    return text


class WritingOptions(Options):
    """How a model that writes is given its examples."""

    system_prompt: str | None = option(
        None,
        "Task",
        "What stands before every chat that has no system turn of its own.",
        reach="nodes",
        effect=WRITING,
    )
    chat_template: Annotated[str, AfterValidator(_template)] | None = option(
        None,
        "Task",
        "Jinja template of chats, in place of the tokenizer's own; or a file with it.",
        metavar="FILE",
        reach="nodes",
        effect=WRITING,
    )
    train_on: Literal["completion", "all"] = option(
        "completion", "Task", "What is learnt: the answers, or prompts too.", reach="nodes", effect=WRITING
    )
