"""What may be wrong with data that can be used: one line each, with a count."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence

_NUMBER = re.compile(r"[-+]?\d[\d.,\s]*")


def like_labels(labels: Iterable[str]) -> Iterator[str]:
    """Labels that are one but for case or blanks."""
    groups: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for label, count in Counter(labels).most_common():
        groups["".join(label.split()).casefold()].append((label, count))
    alike = [group for group in groups.values() if len(group) > 1]
    if alike:
        shown = " and ".join(f"'{label}' ({count:,} rows)" for label, count in alike[0])
        what = "labels that differ" if len(alike) == 1 else f"{len(alike)} groups of labels that differ"
        yield f"There are {what} by case or blanks only, and are classes of their own: {shown}."


def shared(train: Iterable[Hashable], test: Sequence[Hashable]) -> Iterator[str]:
    """Test examples that are training examples too."""
    known = set(train)
    count = sum(example in known for example in test)
    if count:
        is_are = "is" if count == 1 else "are"
        yield f"{count:,} of {len(test):,} test examples {is_are} in the training set too: results look better than they are."


def numbers(texts: Sequence[str], column: str) -> Iterator[str]:
    """A column of texts that holds nothing but numbers."""
    if texts and all(_NUMBER.fullmatch(text.strip()) for text in texts):
        yield f"All {len(texts):,} texts of column '{column}' are numbers, such as '{texts[0].strip()[:20]}': is it the right column?"


def single_clients(clients: Sequence[str] | None, column: str | None) -> Iterator[str]:
    """A column of clients with another value in each row."""
    if clients is not None and column is not None and 1 < len(clients) == len(set(clients)):
        yield f"Column '{column}' has {len(clients):,} values in {len(clients):,} rows: each client has one example; is it the right column?"
