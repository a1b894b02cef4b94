"""What models answer to test examples. The one part of the page that computes, and that shows texts: only where it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lora_a2.report.blocks import Section, table
from lora_a2.report.inputs import Run
from lora_a2.report.mistakes import mistakes_section
from lora_a2.settings.task import CAUSAL_LM, CLASSIFICATION


def answer_sections(runs: Sequence[Run], number: int) -> Iterator[Section]:
    """A section a finished run, with `number` test examples: what a model writes to prompts before and after fine-tuning, and
    where a classifier is wrong.

    Raises:
        LoraA2Error: a run is not finished, or its data or model are not there any more.
    """
    for run in runs:
        title, section = _SECTIONS[run.task.name]
        yield section(f"{title}: {run.name}" if len(runs) > 1 else title, run.record.path, number)


def _answers(title: str, path: Path, number: int) -> Section:
    from lora_a2.runs.answers import answers_of

    rows = [(one.prompt, one.before, one.after, one.reference) for one in answers_of(path, number)]
    said = "Answers to prompts of the test set, by the model as it was and as it is now, and by the data."
    return Section(title, (said,), tables=(("", table(["Prompt", "Before", "After", "Reference"], rows)),))


def _mistakes(title: str, path: Path, number: int) -> Section:
    from lora_a2.runs.mistakes import mistakes_of

    return mistakes_section(title, mistakes_of(path, number))


_SECTIONS = {CAUSAL_LM: ("Answers", _answers), CLASSIFICATION: ("Mistakes", _mistakes)}
"""Task → what its section is called, and what makes it."""
