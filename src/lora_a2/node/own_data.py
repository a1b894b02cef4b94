"""The data of one node: its own file, with the federation's class names."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from lora_a2.config.run import RunConfig
from lora_a2.data.chats import find_task
from lora_a2.data.file_options import USUAL, FileOptions
from lora_a2.data.finding import find_tables
from lora_a2.data.labelled import Examples
from lora_a2.data.options import DataOptions
from lora_a2.data.sources import count_labels, count_rows, load_data, load_examples
from lora_a2.data.writing import WrittenOptions, load_samples, load_written
from lora_a2.data.written import Samples
from lora_a2.errors import DataError
from lora_a2.federation.population import Client, encoding_notes
from lora_a2.model.pretrained import Model
from lora_a2.node.logs import log
from lora_a2.node.protocol import Request
from lora_a2.settings.task import CAUSAL_LM, CLASSIFICATION


@dataclass(frozen=True)
class OwnData:
    """The source of a node's examples, and which of them are for testing.

    `test_fraction` is held out if the data have no test set and `test_data` names none; 0 holds out nothing. `file` says how files
    are read.
    """

    data: str
    text_column: str | None = None
    label_column: str | None = None
    prompt_column: str | None = None
    completion_column: str | None = None
    messages_column: str | None = None
    test_data: str | None = None
    test_fraction: float = 0.2
    file: FileOptions = USUAL

    def __call__(self, config: RunConfig, request: Request, model: Model) -> Client:
        """The node's examples, tokenised; the node's own log has what its operator should know of them.

        Raises:
            DataError: they cannot be read, or have a label that is not one of the federation's.
        """
        train, test = (
            self._samples(config.seed) if config.task == CAUSAL_LM else self._examples(request.labels, config.seed)
        )
        own, held_out = model.encode(train), model.encode(test)
        if not len(own.examples):
            raise DataError(f"In none of the {len(train)} examples of this node is there anything to learn.")
        for note in encoding_notes(own, held_out):
            log.warning(note)
        return Client(request.partition, f"client {request.partition}", own.examples, held_out.examples)

    def check(self) -> int:
        """The number of examples in the file, read before any request.

        Raises:
            DataError: they cannot be read.
        """
        if self._writes():
            return len(load_samples(self.data, self._written(), training=True, say=log.warning))
        return count_rows(self.data, self._labelled())

    @property
    def task(self) -> str:
        """What the data are for.

        Raises:
            DataError: they cannot be found or read.
        """
        return CAUSAL_LM if self._writes() else CLASSIFICATION

    def classes(self) -> dict[str, int]:
        """The number of training examples of each class.

        Raises:
            DataError: they cannot be read.
        """
        return count_labels(self.data, self._labelled())

    def _writes(self) -> bool:
        """Whether the columns are for a model that writes; plain texts have to be named as such."""
        if self.label_column is not None:
            return False
        if any((self.prompt_column, self.completion_column, self.messages_column)):
            return True
        task = find_task(find_tables(self.data, self.file).train.names)
        return task == CAUSAL_LM or (task is None and self.text_column is not None)

    def _labelled(self) -> DataOptions:
        """Where labelled texts are in the file."""
        return DataOptions(text_column=self.text_column, label_column=self.label_column, **vars(self.file))

    def _written(self) -> WrittenOptions:
        """Where chats or texts are in the file."""
        return WrittenOptions(
            text_column=self.text_column,
            prompt_column=self.prompt_column,
            completion_column=self.completion_column,
            messages_column=self.messages_column,
            **vars(self.file),
        )

    def _samples(self, seed: int) -> tuple[Samples, Samples]:
        if self.label_column is not None:
            raise DataError(
                "This node names a column of labels, and the run is for a model that writes, which has none."
            )
        options = replace(self._written(), test_data=self.test_data, hold_out=self.test_fraction, seed=seed)
        if self.test_data is None and self.test_fraction == 0:
            train = load_samples(self.data, options, training=True, say=log.warning)
            return train, train.take(np.zeros(0, np.int64))
        found = load_written(self.data, options)
        for note in found.notes:
            log.warning(note)
        return found.train, found.test

    def _examples(self, labels: tuple[str, ...], seed: int) -> tuple[Examples, Examples]:
        if self.test_data is None and self.test_fraction == 0:
            train = load_examples(self.data, labels, self._labelled(), training=True, say=log.warning)
            return train, train.take(np.zeros(0, np.int64))
        options = replace(
            self._labelled(), test_data=self.test_data, hold_out=self.test_fraction, label_names=labels, seed=seed
        )
        found = load_data(self.data, options)
        for note in found.notes:
            log.warning(note)
        return found.train, found.test
