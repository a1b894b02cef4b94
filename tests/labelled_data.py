"""What tests of labelled data share."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from lora_a2.data.sources import LabelledData, load_data
from lora_a2.errors import DataError


def pairs(data: LabelledData) -> Counter[tuple[str, str]]:
    """(text, label name) of training and test set together."""
    return Counter(
        (text, data.label_names[label])
        for part in (data.train, data.test)
        for text, label in zip(part.texts, part.labels, strict=True)
    )


def refused(says: str, data: str, error: type[Exception] = DataError, **options: Any) -> None:
    """Asserts that data are refused, in one line that says so."""
    with pytest.raises(error, match=says) as caught:
        load_data(data, **options)
    assert "\n" not in str(caught.value)
