"""What a run's language model answers to test prompts, before fine-tuning and after, beside what the data say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_a2.engine.work import end_to_end
from lora_a2.errors import RunError
from lora_a2.runs.configured import config_of
from lora_a2.runs.directory import RunDirectory
from lora_a2.runs.unfinished import reopened
from lora_a2.settings.task import CAUSAL_LM
from lora_a2.simulation import make_pool
from lora_a2.tasks.causal_lm.writing import chosen_examples, prompt_of, write


@dataclass(frozen=True)
class Answered:
    """A test prompt, the answers of the model before and after fine-tuning, and the first right one."""

    prompt: str
    before: str
    after: str
    reference: str


def answers_of(run_dir: str | Path, number: int, trust_remote_code: bool = False) -> Sequence[Answered]:
    """Answers to at most `number` test prompts of a finished run's clients: those that `--generate` takes.

    The run's data are read again, so that they are shown only where they are.

    Raises:
        RunError: the run is not finished, is damaged, or its model labels texts and writes none.
        DataError, ModelError: data or model cannot be used any more, or are others.
    """
    run = RunDirectory.open(Path(run_dir))
    run.require_finished()
    config = config_of(run, trust_remote_code)
    if config.task != CAUSAL_LM:
        raise RunError(f"{run_dir} has a classifier, which writes no answers.")
    setup, state = reopened(run, config)
    model = setup.model
    tests = end_to_end([client.test for client in setup.clients])
    chosen = tests.take(chosen_examples(tests, number, config.seed))
    assert isinstance(chosen.labels, tuple), "the model writes"
    prompts = [
        str(model.tokenizer.decode(prompt_of(ids, labels), skip_special_tokens=True)).strip()
        for ids, labels in zip(chosen.input_ids, chosen.labels, strict=True)
    ]
    with make_pool(model, setup.plan) as pool:
        before = write(model, pool, None, {}, chosen)
        after = write(model, pool, state.adapter, state.base, chosen)
    rights = [own[0] for own in chosen.references]
    return [Answered(*row) for row in zip(prompts, before, after, rights, strict=True)]
