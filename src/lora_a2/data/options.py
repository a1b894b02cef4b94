"""How a data set is read: the options of `load_data`, in one value, and what they share with those of `load_written`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lora_a2.data.file_options import FileKeywords, FileOptions
from lora_a2.data.objects import DataSource
from lora_a2.errors import ConfigError

DEFAULT_TEST_FRACTION = 0.2


@dataclass(frozen=True, kw_only=True)
class ReadingOptions(FileOptions):
    """How a data set of either task is read; names as on the command line. Fields of `FileOptions` come first.

    Attributes:
        text_column: found by the usual names where None.
        client_column: whose example each is; None: nobody's, or, if the data are a mapping, the keys'.
        test_data: what takes the place of the test set that the data bring, if any; a file, or what `load_data` takes in memory.
        test_fraction: share of the training set to hold out if there is no test set; it is wrong to give one where
            there is. None stands for `hold_out`.
        validation_fraction: share of the training set to hold out and to take in place of the test set, for tuning.
        max_examples: size of a stratified subset of the training set: as equal a number from each class as there is.
        max_test_examples: likewise of the test set.
        seed: decides which examples are held out and which make the subsets.
        hold_out: what `test_fraction` is if it is not given.

    Raises:
        ConfigError: one is out of range, or two exclude each other.
    """

    text_column: str | None = None
    client_column: str | None = None
    test_data: DataSource | None = None
    test_fraction: float | None = None
    validation_fraction: float | None = None
    max_examples: int | None = None
    max_test_examples: int | None = None
    seed: int = 0
    hold_out: float = DEFAULT_TEST_FRACTION

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, fraction in (("test", self.test_fraction), ("validation", self.validation_fraction)):
            if fraction is not None and not 0 < fraction < 1:
                raise ConfigError(f"{name}-fraction is {fraction}: it must lie between 0 and 1, such as 0.2.")
        if self.test_fraction is not None and self.test_data is not None:
            raise ConfigError("test-data and test-fraction exclude each other; give one of them.")
        for name, most in (("max-examples", self.max_examples), ("max-test-examples", self.max_test_examples)):
            if most is not None and most < 1:
                raise ConfigError(f"{name} is {most}: it must be at least 1, or the number of classes.")


@dataclass(frozen=True, kw_only=True)
class DataOptions(ReadingOptions):
    """How `load_data` reads a data set.

    Attributes:
        label_column: found by the usual names where None.
        strip_newsgroups: 20 Newsgroups, known by its labels: take headers, footers and quotes off raw articles.
        label_names: the classes, if they are agreed on beforehand; the data then need not have all of them.
    """

    label_column: str | None = None
    strip_newsgroups: bool = True
    label_names: Sequence[str] | None = None


class ReadingKeywords(FileKeywords, total=False):
    """The fields of `ReadingOptions`, for who gives some of them as keywords."""

    text_column: str | None
    client_column: str | None
    test_data: DataSource | None
    test_fraction: float | None
    validation_fraction: float | None
    max_examples: int | None
    max_test_examples: int | None
    seed: int
    hold_out: float


class DataKeywords(ReadingKeywords, total=False):
    """The fields of `DataOptions`, likewise."""

    label_column: str | None
    strip_newsgroups: bool
    label_names: Sequence[str] | None
