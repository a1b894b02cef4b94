"""Data that are in Python's memory already: a `datasets.Dataset`, a `DatasetDict`, or a pandas `DataFrame`, as tables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from lora_a2.data.tables import Table
from lora_a2.errors import DataError

if TYPE_CHECKING:
    import datasets
    import pandas as pd

DataObject: TypeAlias = "datasets.Dataset | datasets.DatasetDict | pd.DataFrame"
DataSource: TypeAlias = "str | os.PathLike[str] | DataObject | Mapping[str, DataObject]"
"""What `load_data` takes: a name, a path, an object that holds rows, or one for each client."""

EXPECTED = "a datasets.Dataset, a datasets.DatasetDict or a pandas DataFrame"


@dataclass(frozen=True)
class Frame:
    """The columns of a pandas `DataFrame`, used as a `datasets.Dataset` is; a missing value of any kind is None."""

    frame: pd.DataFrame
    source: str

    @cached_property
    def column_names(self) -> list[str]:
        """In order, as strings."""
        return [str(name) for name in self.frame.columns]

    @property
    def features(self) -> dict[str, None]:
        """No column says more of itself than its values."""
        return dict.fromkeys(self.column_names)

    def __len__(self) -> int:
        return len(self.frame)

    def __getitem__(self, name: str) -> list[Any]:
        """The values of a column, as plain Python values; of a categorical column the categories.

        Raises:
            DataError: they hold half of a character, which no file can.
        """
        column = self.frame.iloc[:, self.column_names.index(name)]
        rows = zip(column.tolist(), column.isna().tolist(), strict=True)
        values = [None if lacks else v.item() if isinstance(v, np.generic) else v for v, lacks in rows]
        for row, value in enumerate(values, start=1):
            try:
                value.encode() if isinstance(value, str) else None
            except UnicodeEncodeError:
                raise DataError(
                    f"Row {row} of {self.source} has half of a character (a lone surrogate such as \\ud800) in column "
                    f"'{name}'; correct it or remove the row."
                ) from None
        return values


def splits_of(data: object, owner: str = "") -> dict[str, Table] | None:
    """Split name → table of an object that holds rows, "train" if it has no splits; None: it is no such object.

    `owner`, such as " of client 'a'", follows its kind in error messages.

    Raises:
        DataError: a column name occurs twice, or the rows are not in memory.
    """
    import pandas as pd

    if isinstance(data, pd.DataFrame):
        source = f"the DataFrame{owner}"
        frame = Frame(data, source)
        if len(set(frame.column_names)) < len(frame.column_names):
            raise DataError(f"A column name occurs twice among those of {source}: {frame.column_names}; rename one.")
        return {"train": Table(source, frame)}
    import datasets

    if isinstance(data, datasets.IterableDataset | datasets.IterableDatasetDict):
        raise DataError(
            f"The {type(data).__name__}{owner} gives its rows one by one: load it without streaming, or give "
            "datasets.Dataset.from_list(list(…))."
        )
    if isinstance(data, datasets.DatasetDict):
        return {split: _table(f"the DatasetDict{owner} ({split} split)", part) for split, part in data.items()}
    return {"train": _table(f"the Dataset{owner}", data)} if isinstance(data, datasets.Dataset) else None


def _table(source: str, dataset: datasets.Dataset) -> Table:
    """Its columns as plain values, whatever format (NumPy, PyTorch, …) it is set to give them in."""
    return Table(source, dataset.with_format(None))
