"""How many of shopdesk's test questions are answered with the right fact: before fine-tuning, and by a finished run.

    python benchmarks/key_facts.py RUN_DIR [--before] [--json]

A question is right if its key fact stands in the answer, case and blanks aside. The questions' wording is in no training example.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from lora_a2.config.run import RunConfig
from lora_a2.data.written import Turn
from lora_a2.model.causal import load_language_model
from lora_a2.runs.configured import config_of
from lora_a2.runs.directory import RunDirectory
from lora_a2.runs.writer import Writer, load_writer
from lora_a2.tasks.base import EncodingOptions
from lora_a2.tasks.causal_lm.generation import generate_texts
from lora_a2.tasks.causal_lm.sampling_options import SamplingOptions

SHOWN = 3


def questions() -> list[dict[str, str]]:
    """shopdesk's test set."""
    text = (files("lora_a2.data") / "shopdesk" / "test.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def is_right(answer: str, key: str) -> bool:
    """Whether the key fact stands in an answer."""
    return "".join(key.lower().split()) in "".join(answer.lower().split())


def answers(writer: Writer) -> list[str]:
    """To every question."""
    prompts = [writer.encode_prompt([Turn("user", row["prompt"])]) for row in questions()]
    return generate_texts(writer.model, writer.tokenizer, prompts, SamplingOptions(max_new_tokens=60))


def base_writer(config: RunConfig) -> Writer:
    """The model of a run as it was before."""
    found = load_language_model(config.model)
    encoding = EncodingOptions(config.max_length, config.system_prompt, config.chat_template, config.train_on)
    return Writer(found.whole, found.backbone.tokenizer, encoding)


def share(texts: Sequence[str]) -> float:
    """Of the questions, those answered with the right fact."""
    rows = questions()
    return sum(is_right(text, row["key"]) for text, row in zip(texts, rows, strict=True)) / len(rows)


def main() -> None:
    """Prints the shares, and some answers before and after."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir")
    parser.add_argument("--before", action="store_true", help="ask the model before fine-tuning too")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    config = config_of(RunDirectory.open(Path(given.run_dir)))
    before = answers(base_writer(config)) if given.before else None
    after = answers(load_writer(given.run_dir))
    found: dict[str, Any] = {"after": share(after), **({} if before is None else {"before": share(before)})}
    if given.json:
        print(json.dumps(found))
        return
    for number, row in enumerate(questions()[:: len(questions()) // SHOWN][:SHOWN]):
        place = number * (len(questions()) // SHOWN)
        print(f"\n> {row['prompt']}")
        if before is not None:
            print(f"  before: {before[place]}")
        print(f"  after:  {after[place]}")
        print(f"  right:  {row['completion']}")
    print()
    for name in ("before", "after"):
        if name in found:
            print(f"Key facts right {name}: {100 * found[name]:.0f} % of {len(questions())}")


if __name__ == "__main__":
    main()
