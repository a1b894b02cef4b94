"""What models write, before and after fine-tuning. The one part of the page that computes: it asks the models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lora_a2.report.blocks import Section, table
from lora_a2.report.inputs import Run


def answer_sections(runs: Sequence[Run], number: int) -> Iterator[Section]:
    """A section a finished run: its model's answers to `number` test prompts.

    Raises:
        LoraA2Error: a run's model writes nothing, or its data or model are not there any more.
    """
    from lora_a2.runs.answers import answers_of

    for run in runs:
        found = answers_of(run.record.path, number)
        yield Section(
            f"Answers: {run.name}" if len(runs) > 1 else "Answers",
            ("Answers to prompts of the test set, by the model as it was and as it is now, and by the data.",),
            tables=(
                (
                    "",
                    table(
                        ["Prompt", "Before", "After", "Reference"],
                        [(one.prompt, one.before, one.after, one.reference) for one in found],
                    ),
                ),
            ),
        )
