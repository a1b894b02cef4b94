"""Options of data, and of how examples are split over clients."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator

from lora_a2.data.file_options import OnMissing, encoding_of, separator_of
from lora_a2.data.newsgroups import NewsgroupsOptions
from lora_a2.data.partition import KINDS
from lora_a2.settings.options import MOST, Effect, Float, Int, Options, among, option
from lora_a2.settings.task import CAUSAL_LM, LABELLING, WRITING, by_task

DEFAULT_NUM_CLIENTS = 10


class SourceOptions(Options):
    """Which examples there are."""

    data: str = option(
        by_task("helpdesk", "shopdesk"),
        "Data",
        "helpdesk, shopdesk, banking77, 20newsgroups, a file (csv, tsv, jsonl, parquet, xlsx; plain or gz), a folder with train.* and "
        "test.*, or a hub data set.",
        shown="helpdesk; shopdesk with --task causal-lm",
    )
    text_column: str | None = option(None, "Data", "Column of the texts; found by itself if the name is usual.")
    label_column: str | None = option(
        None, "Data", "Column of the labels; found by itself if the name is usual.", effect=LABELLING
    )
    prompt_column: str | None = option(
        None, "Data", "Column of the prompts; found by itself if the name is usual.", effect=WRITING
    )
    completion_column: str | None = option(None, "Data", "Column of the answers, likewise.", effect=WRITING)
    messages_column: str | None = option(None, "Data", "Column of whole chats, likewise.", effect=WRITING)
    references_column: str | None = option(
        None, "Data", "Column with lists of further right answers, to evaluate with.", effect=WRITING
    )
    client_column: str | None = option(
        None,
        "Data",
        "Column that tells whose example it is.",
        effect=Effect(lambda c: c.partitioner == "natural", "--partitioner natural, or none"),
    )
    separator: Annotated[str, AfterValidator(separator_of)] | None = option(
        None,
        "Data",
        "What separates the values of a csv file: a character, or comma, semicolon, tab, pipe.",
        shown="found by itself",
    )
    encoding: Annotated[str, AfterValidator(encoding_of)] | None = option(
        None,
        "Data",
        "Encoding of text files, such as cp1252 or latin-1.",
        shown="utf-8, or utf-16 by its mark",
    )
    on_missing: OnMissing = option(
        "error",
        "Data",
        "What becomes of rows without a text, label, client, prompt or answer, and of test rows with a label that training has not.",
    )
    test_data: str | None = option(None, "Data", "File with the test examples.", metavar="FILE")
    test_fraction: Float | None = option(
        None, "Data", "Share of the training set held out for testing if the data have no test set.", gt=0, lt=1
    )
    max_examples: Int | None = option(
        None, "Data", "Size of a stratified part of the training set, for a quick try.", gt=0
    )
    max_test_examples: Int | None = option(None, "Data", "Size of a stratified part of the test set, likewise.", gt=0)
    validation_fraction: Float | None = option(
        None,
        "Data",
        "Hold out this share of the training set and evaluate on it in place of the test set, to tune options.",
        gt=0,
        lt=1,
    )


# pydantic takes the fields of the last base first.
class DataConfig(NewsgroupsOptions, SourceOptions):
    """All that tells which examples there are, options of single data sets included."""


# These see the fields before their own, but not those that turned out wrong (the whole is refused then).
def _default_partitioner(given: dict[str, Any]) -> str:
    if given.get("client_column") is not None:
        return "natural"
    return "iid" if given.get("task") == CAUSAL_LM else "dirichlet"


def _default_num_clients(given: dict[str, Any]) -> int | None:
    return None if given.get("partitioner") == "natural" else DEFAULT_NUM_CLIENTS


class ClientConfig(Options):
    """How examples are split over clients."""

    partitioner: Annotated[str, among(KINDS)] = option(
        _default_partitioner,
        "Clients",
        "How examples are split over clients.",
        metavar="|".join(KINDS),
        shown="dirichlet, iid with --task causal-lm; natural with --client-column",
    )
    alpha: Float = option(
        0.5,
        "Clients",
        "Concentration of the Dirichlet and the quantity split; small is uneven.",
        effect=Effect(lambda c: c.partitioner in ("dirichlet", "quantity"), "--partitioner dirichlet or quantity"),
        gt=0,
    )
    num_clients: Int | None = option(
        _default_num_clients,
        "Clients",
        "Number of clients.",
        shown=f"{DEFAULT_NUM_CLIENTS}; all of them with natural",
        reach="nobody",  # whoever asks a node says it beside the options
        ge=1,
        le=MOST,
    )
    min_client_examples: Int = option(
        1,
        "Clients",
        "Leave out natural clients with fewer training examples than this.",
        effect=Effect(lambda c: c.partitioner == "natural", "--client-column"),
        ge=1,
    )
